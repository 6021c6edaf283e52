"""Some of the head's columns in place of all: exact in all but the draw, and what a draw costs."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.targets.dense_targets import DenseTargets
from stages.train_student.data.targets.sparse_targets import SparseTargets
from stages.train_student.losses.sampled_softmax import SampledColumns
from stages.train_student.losses.sparse_kl import SparseDistillationLoss
from stages.train_student.losses.vocabulary_pass import VocabularyWeights
from stages.train_student.losses.vocabulary_terms import VocabularyTerms
from tests.support.dense_teachers import make_problem, samples, sparse, with_draws
from tests.support.host_waits import NoDeviceSync
from tests.support.loss_gradients import CPU, MODES
from tests.support.train_configs import train_config

_VOCAB = 200
_KINDS = ["labels", "top_k", "top_k+sampled", "sampled", "top_k+hidden"]
_STANDARD_ERRORS = 4.5


class Enumerated(SampledColumns):
    """Draws every id that is not named once, in falling order; each stands for itself."""

    def _draw(self, named_U: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        is_other = torch.ones(len(self.mixture_V), dtype=torch.bool).index_fill(0, named_U, False)
        ids = is_other.nonzero()[:, 0].flip(0)
        return ids, torch.zeros(len(ids))


def sampled_softmax_size(
    num_drawn: int, kind: type[SampledColumns] = SampledColumns
) -> SampledColumns:
    ranks = torch.randperm(_VOCAB, generator=torch.Generator().manual_seed(3))
    return kind(ranks, num_drawn)


def with_small_logits(problem: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Of a student whose logits are not far apart: a few draws tell much of the others."""
    return (0.3 * problem[0], *problem[1:])


def targets_of(
    kind: str, teacher: torch.Tensor, temperature: float
) -> SparseTargets | DenseTargets | None:
    generator = torch.Generator().manual_seed(0)
    if kind == "labels":
        return None
    if kind == "top_k+hidden":  # of a state that is not quite the one of the kept logits
        head = 0.3 * torch.randn(_VOCAB, 12, generator=generator)
        hidden = torch.randn(len(teacher), 12, generator=generator)
        exact = (hidden + 0.1 * torch.randn(hidden.shape, generator=generator)) @ head.T
        kept = sparse(exact, [5, *[6] * (len(teacher) - 1)], 6)
        return DenseTargets(hidden, head, kept)
    if kind == "sampled":
        return samples(teacher, 12, temperature, generator)
    targets = sparse(teacher, [5, *[6] * (len(teacher) - 1)], 6)
    return targets if kind == "top_k" else with_draws(targets, teacher, 8, 1.0, generator)


def gradient_of(
    columns: SampledColumns | None,
    problem: Sequence[torch.Tensor],
    targets: SparseTargets | DenseTargets | None,
    temperature: float,
    *,
    chunk: int = 5,
    **how: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(weighted, CE, KL), and the gradient by the hidden states."""
    settings: dict[str, Any] = {"dtype": torch.float32, "compile": "off"} | how
    terms = VocabularyTerms(
        device=CPU,
        chunk=chunk,
        dtype=settings["dtype"],
        compile=settings["compile"],
        columns=columns,
    )
    hidden, head, labels = problem
    leaf = hidden.clone().requires_grad_()
    weights = VocabularyWeights(0.4, 0.6 if targets else 0.0, temperature)
    sums = terms.sums(leaf, head, labels, targets, weights)
    (gradient,) = torch.autograd.grad(sums.weighted, leaf)
    return torch.stack((sums.weighted.double().detach(), sums.cross_entropy, sums.kl)), gradient


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("keeps_repetitions", [False, True])
@pytest.mark.parametrize("kind", _KINDS)
def test_sampling_every_column_once_gives_the_exact_loss(
    kind: str, keeps_repetitions: bool, mode: str
) -> None:
    *problem, teacher = make_problem(1, 12, _VOCAB)
    columns = sampled_softmax_size(1, Enumerated)
    columns.keeps_repetitions = keeps_repetitions
    for temperature in (1.0, 1.6):
        targets = targets_of(kind, teacher, temperature)
        exact = gradient_of(None, problem, targets, temperature)
        found = gradient_of(columns, problem, targets, temperature, compile=mode)
        for one, other in zip(found, exact, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_sampling_every_column_once_gives_the_exact_gradient_in_half_precision(
    dtype: torch.dtype, bound: float
) -> None:
    *problem, teacher = make_problem(1, 12, _VOCAB)
    targets, columns = (
        targets_of("top_k+sampled", teacher, 1.6),
        sampled_softmax_size(1, Enumerated),
    )
    _, exact = gradient_of(None, problem, targets, 1.6)
    _, found = gradient_of(columns, problem, targets, 1.6, dtype=dtype)
    assert (found - exact).norm() < bound * exact.norm()


@pytest.mark.parametrize("keeps_repetitions", [False, True])
def test_the_mean_sampling_weight_of_every_id_is_one(keeps_repetitions: bool) -> None:
    """So every sum over columns is unbiased; what is named stands for itself, always."""
    columns = sampled_softmax_size(32)
    columns.keeps_repetitions = keeps_repetitions
    a, b, c, d = columns.mixture_V.topk(4).indices.tolist()  # likely ones, which must not be drawn
    named = torch.tensor([[c, b, c], [a, b, d]])
    torch.manual_seed(0)
    chosen = columns.choose(named)
    assert chosen is not None
    assert chosen.ids_C[chosen.places(named)].equal(named)
    assert (chosen.log_weight_C[chosen.places(named)] == 0).all()
    assert len(chosen.ids_C) == 32 + (6 if keeps_repetitions else 4)
    weights = torch.zeros(8_000, _VOCAB, dtype=torch.float64)
    for weights_V in weights:
        chosen = columns.choose(named)
        assert chosen is not None
        weights_V.index_add_(0, chosen.ids_C, chosen.log_weight_C.double().exp())
    assert (weights[:, [a, b, c, d]] == 1).all()
    # All together as well: a factor that all weights lack shows best in their sum.
    for values, exact, bound in ((weights, 1.0, 0.25), (weights.sum(1), _VOCAB, 0.02 * _VOCAB)):
        allowed = _STANDARD_ERRORS * values.std(0) / math.sqrt(len(values)) + 1e-6
        assert ((values.mean(0) - exact).abs() < allowed).all()
        assert allowed.max() < bound  # or no bias would be seen


def test_the_sampled_normalizer_is_unbiased() -> None:
    problem = with_small_logits(make_problem(2, 1, _VOCAB)[:3])
    (_, exact, _), _ = gradient_of(None, problem, None, 1.0)
    torch.manual_seed(0)
    runs = [gradient_of(sampled_softmax_size(64), problem, None, 1.0)[0][1] for _ in range(800)]
    inverse_q = torch.stack(runs).exp()  # Z over the label's exp(z), which is exact
    allowed = _STANDARD_ERRORS * float(inverse_q.std()) / math.sqrt(len(runs))
    assert float(inverse_q.mean()) == pytest.approx(exact.exp().item(), abs=allowed)
    assert allowed < 0.05 * exact.exp().item()


@pytest.mark.parametrize("kind", _KINDS)
def test_the_mean_sampled_gradient_is_near_the_exact_one(kind: str) -> None:
    """Bias below 3 % of its norm for 64 draws; noise falls with the root of their number."""
    *problem, teacher = make_problem(3, 8, _VOCAB)
    problem = [*with_small_logits(problem)]
    temperature, repeats = 1.6, 400
    targets = targets_of(kind, teacher, temperature)
    _, exact = gradient_of(None, problem, targets, temperature, chunk=8)
    noise = {}
    for num_drawn in (16, 64):
        torch.manual_seed(num_drawn)
        columns = sampled_softmax_size(num_drawn)
        runs = torch.stack(
            [
                gradient_of(columns, problem, targets, temperature, chunk=8)[1]
                for _ in range(repeats)
            ]
        )
        variance = runs.var(0).sum()
        noise[num_drawn] = float((variance.sqrt()) / exact.norm())
        squared = (runs.mean(0) - exact).square().sum() - variance / repeats
    assert squared.clamp_min(0).sqrt() < 0.03 * exact.norm()
    assert 0 < noise[64] < 0.7 * noise[16]


def test_sampling_follows_the_generator_and_validation_uses_all_columns() -> None:
    *problem, teacher = make_problem(4, 12, _VOCAB)
    targets, columns = targets_of("top_k", teacher, 1.6), sampled_softmax_size(32)
    assert isinstance(targets, SparseTargets)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(gradient_of(columns, problem, targets, 1.6)[1])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    state = torch.get_rng_state()
    hidden, head, labels = problem
    sums = [
        SparseDistillationLoss(
            chunk=5, dtype=torch.float32, compile="off", device=CPU, columns=chosen
        )(hidden, head, labels, targets, VocabularyWeights(0.4, 0.6, 1.6))
        for chosen in (columns, None)
    ]
    assert vars(sums[0]) == vars(sums[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_all_columns_are_used_where_sampling_would_save_none() -> None:
    *problem, teacher = make_problem(5, 12, _VOCAB)
    labels = torch.arange(12)
    targets = targets_of("labels", teacher, 1.0)
    exact = gradient_of(None, (*problem[:2], labels), targets, 1.0, chunk=12)
    for num_drawn, is_exact in ((_VOCAB - 12, True), (_VOCAB - 13, False)):
        columns = sampled_softmax_size(num_drawn)
        assert (columns.choose(labels) is None) == is_exact
        found = gradient_of(columns, (*problem[:2], labels), targets, 1.0, chunk=12)
        assert torch.equal(found[1], exact[1]) == is_exact


class NoTensorAsLargeAsAllLogits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails where a tensor of several rows and all columns is made."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **kwargs or {})
        if isinstance(out, torch.Tensor) and out.ndim > 1 and func != torch.ops.aten.t.default:
            assert out.shape[-1] != _VOCAB, func
        return out


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sampled_softmax_never_waits_for_the_gpu_or_holds_all_logits(
    kind: str, dtype: torch.dtype
) -> None:
    *problem, teacher = make_problem(6, 8, _VOCAB)
    targets, columns = targets_of(kind, teacher, 1.0), sampled_softmax_size(32)
    columns.keeps_repetitions = True  # as on a GPU
    with NoTensorAsLargeAsAllLogits(), NoDeviceSync():  # type: ignore[no-untyped-call]
        gradient_of(columns, problem, targets, 1.0, dtype=dtype)
    with pytest.raises(AssertionError), NoTensorAsLargeAsAllLogits():  # type: ignore[no-untyped-call]
        gradient_of(None, problem, targets, 1.0, dtype=dtype)


def test_sampled_softmax_settings_out_of_bounds_are_refused() -> None:
    assert TrainStudentConfig().sampled_softmax_size is None
    assert TrainStudentConfig(sampled_softmax_size=1).sampled_softmax_size == 1
    assert train_config(train_head=True).student.train_head
    with pytest.raises(ValueError, match="sampled_softmax_size: must be 1 or more"):
        TrainStudentConfig(sampled_softmax_size=0)
    with pytest.raises(
        ValueError, match=r"sampled_softmax_size: must be none if student\.train_head is true"
    ):
        train_config(sampled_softmax_size=64, train_head=True)
