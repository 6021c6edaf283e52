"""The pass over all logits: against float64, compiled and not, in place and into half precision."""

import math

import pytest
import torch

from stages.train_student.losses.vocabulary_pass import (
    DeviceWeights,
    TargetLogMasses,
    VocabularyPass,
    VocabularyWeights,
)
from tests.support.loss_gradients import CPU, MODES


def columns(*values: float) -> TargetLogMasses:
    return TargetLogMasses(*(torch.full((6, 1), value) for value in values))


def expected(
    logits: torch.Tensor, known: TargetLogMasses, weighting: VocabularyWeights
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both log-masses of the rest and the gradient, in float64."""
    ce_weight, kl_weight, temperature = weighting
    mass, mass_at_T, tail_mass_at_T, target = (
        torch.zeros(6, 1, dtype=torch.float64) if column is None else column.double()
        for column in known
    )
    logits = logits.double()
    scores = logits / temperature
    rest, rest_at_T = (x.logsumexp(1, keepdim=True) for x in (logits, scores))
    gradient = ce_weight * (logits - torch.logaddexp(mass, rest)).exp()
    if known.tail_target is not None:
        log_tail = torch.logaddexp(tail_mass_at_T, rest_at_T)
        tail_excess = (log_tail - torch.logaddexp(mass_at_T, rest_at_T)).exp() - target
        gradient += kl_weight / temperature * tail_excess * (scores - log_tail).exp()
    return rest, rest_at_T, gradient


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("into", [None, torch.float16, torch.bfloat16])
def test_the_vocabulary_pass_equals_the_dense_formula(mode: str, into: torch.dtype | None) -> None:
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(0)) * 4
    logits[:, ::7] = -math.inf
    labels_only, with_kl = columns(3.0), columns(3.0, 2.5, -1.0, 0.4)
    weighting = VocabularyWeights(0.3, 0.9, 1.37)
    the_pass = VocabularyPass(mode, CPU)  # type: ignore[arg-type]
    for known in (labels_only, with_kl):
        worked_on = logits.clone()
        out = None if into is None else torch.full_like(logits, math.nan, dtype=into)
        rest = the_pass(worked_on, known, DeviceWeights.of(weighting, CPU), out)
        *masses, gradient = expected(logits, known, weighting)
        for found, exactly in zip(rest, masses, strict=False):
            torch.testing.assert_close(found.double(), exactly, atol=0, rtol=1e-6)
        assert len(rest) == (1 if known is labels_only else 2)
        written = worked_on if out is None else out
        bound = 2e-6 if into is None else torch.finfo(into).eps
        # float16 has nothing between 0 and 6e-8; the loss scales what it writes there.
        torch.testing.assert_close(written.double(), gradient, atol=3.1e-8, rtol=bound)
        assert (written[:, ::7] == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_if_all_ids_are_target_tokens_no_mass_is_left(mode: str) -> None:
    the_pass = VocabularyPass(mode, CPU)  # type: ignore[arg-type]
    weights = DeviceWeights.of(VocabularyWeights(0.5, 0.5, 2.0), CPU)
    for known in (columns(1.0), columns(1.0, 1.0, -math.inf, 0.0)):
        logits = torch.full((6, 20), -math.inf)
        rest = the_pass(logits, known, weights, None)
        assert all((mass == -math.inf).all() for mass in rest)
        assert (logits == 0).all()


def test_rows_are_processed_in_cache_sized_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit into a core's cache is read from memory once for each of its passes."""
    the_pass, seen = VocabularyPass("off", CPU), []

    def watched(logits: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append(len(logits))
        return (logits[:, :1],)

    monkeypatch.setattr(the_pass._labels, "_function", watched)
    for num_ids in (150_000, 100):
        the_pass(
            torch.zeros(5, num_ids),
            columns(0.0),
            DeviceWeights.of(VocabularyWeights(1.0, 0.0, 1.0), CPU),
            None,
        )
    assert seen == [2, 2, 1, 5]


def test_nan_logits_stay_nan() -> None:
    logits = torch.zeros(6, 10)
    logits[2, 3] = math.nan
    (rest,) = VocabularyPass("off", CPU)(
        logits, columns(0.0), DeviceWeights.of(VocabularyWeights(1.0, 0.0, 1.0), CPU), None
    )
    assert rest.isnan().sum() == 1
    assert logits[2].isnan().all()
