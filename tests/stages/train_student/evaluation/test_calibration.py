"""Accuracy and calibration error against a plain loop over positions."""

import math

import pytest
import torch

from stages.train_student.evaluation.calibration import Calibration, first_choices


def expected_error(confidences: list[float], is_right: list[bool]) -> float:
    total = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        bin_ = [(c, r) for c, r in zip(confidences, is_right, strict=True) if low < c <= high]
        if bin_:
            confidence = sum(c for c, _ in bin_) / len(bin_)
            accuracy = sum(r for _, r in bin_) / len(bin_)
            total += len(bin_) / len(confidences) * abs(accuracy - confidence)
    return total


def test_calibration_error_and_accuracy_accumulate_over_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(500, generator=generator, dtype=torch.float64).clamp_min(1e-3)
    is_right = torch.rand(500, generator=generator) < confidence.sqrt()
    calibration = Calibration()
    for part in range(0, 500, 130):
        calibration.add(confidence[part : part + 130], is_right[part : part + 130])
    expected = expected_error(confidence.tolist(), is_right.tolist())
    assert calibration.error == pytest.approx(expected, rel=1e-9)
    assert calibration.error > 0.05
    assert calibration.accuracy == pytest.approx(float(is_right.double().mean()))


@pytest.mark.parametrize("confidence", [1e-9, 1 / 15, 0.5, 1.0, 1.0 + 1e-7])
def test_confidences_at_the_edges_fall_into_a_bin(confidence: float) -> None:
    calibration = Calibration()
    calibration.add(
        torch.tensor([confidence, confidence], dtype=torch.float64), torch.tensor([True, False])
    )
    assert calibration.error == pytest.approx(abs(0.5 - confidence))


def test_a_bin_holds_its_upper_edge_and_no_other() -> None:
    """Confidences of one bin are averaged, of two bins are not."""
    calibration = Calibration()
    calibration.add(
        torch.tensor([2 / 15, 1.001 / 15], dtype=torch.float64), torch.tensor([True, False])
    )
    assert calibration.error == pytest.approx(abs(1 - 3.001 / 15) / 2)
    apart = Calibration()
    apart.add(
        torch.tensor([2.001 / 15, 1.999 / 15], dtype=torch.float64), torch.tensor([True, False])
    )
    assert apart.error == pytest.approx((1 - 2.001 / 15 + 1.999 / 15) / 2)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_first_choices_are_the_argmax_and_its_probability(chunk: int) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden, head = (torch.randn(n, 8, generator=generator) for n in (7, 30))
    confidence, ids = first_choices(hidden, head, chunk)
    probabilities = (hidden.double() @ head.double().T).softmax(1)
    torch.testing.assert_close(confidence.double(), probabilities.amax(1), rtol=1e-5, atol=0)
    assert torch.equal(ids, probabilities.argmax(1))


def test_first_choices_are_not_rounded_under_autocast() -> None:
    hidden, head = torch.tensor([[3.001, 3.0]]), torch.eye(2)
    with torch.autocast("cpu", torch.bfloat16):
        confidence, ids = first_choices(hidden, head, 4)
    assert ids.tolist() == [0]
    assert float(confidence) == pytest.approx(1 / (1 + math.exp(-0.001)), rel=1e-6)
