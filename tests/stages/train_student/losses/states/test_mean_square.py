"""The mean square of states before the head: value, gradient, what it needs, and that it is off."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cache_format.reader import Cache
from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.batch import Batch, read_batch
from stages.train_student.data.requirements import require_targets
from stages.train_student.data.scored import scored
from stages.train_student.data.targets.dense_targets import DenseTargets
from stages.train_student.losses.loss_term import LossNormalizer, TeacherTargets, TermInputs
from stages.train_student.losses.objective import make_objective
from stages.train_student.losses.states.mean_square import StateMSETerm
from stages.train_student.losses.terms import LossWeights, cache_needs, loss_weights
from stages.train_student.new_student import load_student
from tests.support.hybrid_runs import align_config, distill_config, hybrid_cache
from tests.support.student_caches import TARGETS, write_cache
from tests.support.train_configs import tiny_train_config
from tests.support.train_runs import metrics, run

_ALONE = {"alpha_start": 0.0, "alpha_end": 0.0}
_STATES = {"alpha_start": 0.0, "alpha_end": 0.0, "beta_start": 0.0, "beta_end": 0.0}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return write_cache(tmp_path / "cache", TARGETS["hidden"])


def made_up(batch: Batch) -> tuple[Tensor, DenseTargets]:
    """States of a student and, at scored positions, of a teacher; a head for both."""
    generator = torch.Generator().manual_seed(0)
    hidden_BTD = torch.randn(*batch.input_ids.shape, 16, generator=generator)
    teacher_ND = torch.randn(batch.num_scored, 16, generator=generator)
    return hidden_BTD, DenseTargets(teacher_ND, torch.randn(40, 16, generator=generator))


def test_value_and_gradient_are_those_of_the_formula_in_float64(cache: Cache) -> None:
    batch = read_batch(cache, "train", range(3), with_sketch=False)
    assert 0 < batch.num_scored < batch.input_ids.numel()
    hidden_BTD, targets = made_up(batch)
    hidden_BTD.requires_grad_()
    inputs = TermInputs(batch, hidden_BTD, targets.head_VD, TeacherTargets(targets))
    found = StateMSETerm()(inputs, 0.3, LossNormalizer(batch.num_scored, 3))
    (gradient,) = torch.autograd.grad(found.weighted, hidden_BTD)

    wide_BTD = hidden_BTD.detach().double().requires_grad_()
    difference_ND = scored(wide_BTD, batch) - targets.hidden_ND.double()
    expected = difference_ND.square().mean()
    (expected_gradient,) = torch.autograd.grad(0.3 * expected, wide_BTD)
    assert found.values[0].item() == pytest.approx(expected.item(), rel=1e-6)
    assert found.weighted.item() == pytest.approx(0.3 * expected.item(), rel=1e-6)
    torch.testing.assert_close(gradient.double(), expected_gradient, atol=1e-9, rtol=1e-5)
    is_scored = torch.zeros(batch.input_ids.numel(), dtype=torch.bool)
    is_scored[batch.scored] = True
    assert not gradient.flatten(0, 1)[~is_scored].any()


def test_without_a_weight_it_is_not_computed(cache: Cache) -> None:
    batch = read_batch(cache, "train", range(3), with_sketch=False)
    hidden_BTD, targets = made_up(batch)
    inputs = TermInputs(batch, hidden_BTD, targets.head_VD, TeacherTargets())
    found = StateMSETerm()(inputs, 0.0, LossNormalizer(batch.num_scored, 3))
    assert found.weighted == found.values[0] == 0


@pytest.mark.parametrize("kind", ["hidden", "top_k+hidden"])
@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_the_objective_compares_with_the_decoded_states(
    tmp_path: Path, kind: str, alpha: float
) -> None:
    cache = write_cache(tmp_path / "cache", TARGETS[kind])
    both = {"alpha_start": alpha, "alpha_end": alpha, "temperature_start": 1.0}
    config = tiny_train_config(**(_STATES | both | {"state_mse_weight": 0.6, "dropout": 0.0}))
    model = load_student(config, cache)
    objective = make_objective(model, cache, config, torch.device("cpu"))
    assert objective.value_names == ("loss", "cross_entropy", "kl", "frobenius", "state_mse")
    rows = [read_batch(cache, "train", [index], with_sketch=False) for index in range(3)]
    whole = read_batch(cache, "train", range(3), with_sketch=False)
    normalizer = LossNormalizer(whole.num_scored, 3)
    step = loss_weights(config, 0, 10)
    loss, values = objective.micro_batch_loss(model, whole, step, normalizer)
    parts = [objective.micro_batch_loss(model, row, step, normalizer)[1] for row in rows]
    torch.testing.assert_close(torch.stack(parts).sum(0), values, atol=1e-6, rtol=1e-5)

    states: Any = objective.decode(whole.targets, whole.scored)
    hidden_BTD = model.hidden_states(whole.input_ids, whole.is_document_start)
    expected = (scored(hidden_BTD, whole) - states.hidden_ND).square().mean()
    assert values[4].item() == pytest.approx(expected.item(), rel=1e-5)
    terms = (1 - alpha - 0.6) * values[1] + alpha * values[2] + 0.6 * values[4]
    assert loss.item() == pytest.approx(terms.item(), rel=1e-5)


@pytest.mark.parametrize("kind", sorted(TARGETS))
def test_caches_without_coded_states_are_refused(tmp_path: Path, kind: str) -> None:
    cache = write_cache(tmp_path / "cache", TARGETS[kind])
    config = TrainStudentConfig(**{**_STATES, "state_mse_weight": 0.5})  # type: ignore[arg-type]
    if "hidden" in kind:
        require_targets(config, cache, cache_needs(config))
        return
    message = r"^train_student.state_mse_weight: .*'hidden' or 'top_k\+hidden'"
    with pytest.raises(ValueError, match=message):
        require_targets(config, cache, cache_needs(config))
    off = replace(config, state_mse_weight=0.0)
    require_targets(off, cache, cache_needs(off))


def test_the_labels_have_what_is_left() -> None:
    assert LossWeights(0.5, 0.1, 1.0, 0.3).cross_entropy == pytest.approx(0.1)
    assert LossWeights(0.5, 0.1, 1.0).cross_entropy == 1 - 0.5 - 0.1
    assert LossWeights(0.0, 0.0, 1.0, 0.3).uses_teacher
    settings: dict[str, Any] = {"alpha_start": 0.5, "alpha_end": 0.5, "beta_start": 0.1}
    assert TrainStudentConfig(**settings, state_mse_weight=0.4).state_mse_weight == 0.4
    message = r"^alpha_start: must be at most 1 − β − state_mse_weight = 0\.49,"
    with pytest.raises(ValueError, match=message):
        TrainStudentConfig(**settings, state_mse_weight=0.41)
    for weight in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"^state_mse_weight: must be from 0 to 1"):
            TrainStudentConfig(**settings, state_mse_weight=weight)


def test_an_alignment_has_no_such_term() -> None:
    with pytest.raises(ValueError, match=r"^state_mse_weight: must be 0 with the objective align"):
        align_config(state_mse_weight=0.1, alpha_start=0.1, alpha_end=0.1)


def test_new_weights_alone_come_nearer_to_the_teachers_states(tmp_path: Path) -> None:
    cache = hybrid_cache(tmp_path, targets="hidden")
    config = distill_config(
        trained="new", learning_rate=1e-2, max_steps=9, state_mse_weight=1.0, **_ALONE
    )
    run(config, cache, tmp_path / "run")
    rows = [row for row in metrics(tmp_path / "run") if "train/state_mse" in row]
    assert rows[0]["schedule/state_mse"] == 1.0
    assert rows[0]["train/loss"] == rows[0]["train/state_mse"]
    assert rows[-1]["train/state_mse"] < 0.95 * rows[0]["train/state_mse"]


def test_where_it_is_off_the_loss_is_bitwise_what_it_is_without_the_term(cache: Cache) -> None:
    config = tiny_train_config(dropout=0.0, beta_start=0.0, beta_end=0.0)
    model = load_student(config, cache)
    batch = read_batch(cache, "train", range(3), with_sketch=False)
    objective = make_objective(model, cache, config, torch.device("cpu"))
    assert objective.value_names == ("loss", "cross_entropy", "kl", "frobenius")
    normalizer = LossNormalizer(batch.num_scored, 3)
    weights = loss_weights(config, 5, 10)
    found = objective.micro_batch_loss(model, batch, weights, normalizer)
    without = replace(objective, further_terms=())
    expected = without.micro_batch_loss(model, batch, weights, normalizer)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1][:3], expected[1])


def test_where_it_is_off_no_metric_names_it(tmp_path: Path, cache: Cache) -> None:
    config = tiny_train_config(max_steps=1, beta_start=0.0, beta_end=0.0)
    run(config, tmp_path / "cache", tmp_path / "run")
    names = {name for row in metrics(tmp_path / "run") for name in row}
    assert "train/kl" in names
    assert not any("state_mse" in name for name in names)
