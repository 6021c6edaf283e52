"""The loss with the tail's moments, against the KL of the full distributions in float64."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.compute.compiling import has_compiler
from stages.train_student.data.targets.sparse_targets import SparseTargets
from stages.train_student.losses import vocabulary_pass
from stages.train_student.losses.sampled_softmax import SampledColumns
from stages.train_student.losses.sparse_kl import SparseDistillationLoss, sparse_distillation_loss
from stages.train_student.losses.vocabulary_pass import VocabularyWeights
from tests.support.dense_teachers import NODES, make_problem, sparse, with_draws, with_moments

_V, _D, _N = 60, 8, 12
_WEIGHTS = [(0.0, 1.0), (0.3, 1.7)]


def orthonormal(dim: int, width: int = _D, seed: int = 0) -> torch.Tensor:
    """Rows, [dim, width]."""
    drawn = torch.randn(width, width, generator=torch.Generator().manual_seed(seed))
    basis: torch.Tensor = torch.linalg.qr(drawn.double())[0][:dim].float()
    return basis


def targets_of(teacher: torch.Tensor, top_k: int = 5) -> SparseTargets:
    """Some positions keep fewer ids than others."""
    num_kept = [1 + n % top_k for n in range(len(teacher))]
    return sparse(teacher, num_kept, top_k)


def loss_of(
    hidden: torch.Tensor,
    head: torch.Tensor,
    labels: torch.Tensor,
    targets: SparseTargets,
    weights: tuple[float, float, float],
) -> tuple[float, float, torch.Tensor]:
    """Weighted value, KL, and gradient by the hidden states."""
    leaf = hidden.clone().requires_grad_()
    sums = sparse_distillation_loss(leaf, head, labels, targets, VocabularyWeights(*weights), 5)
    (gradient,) = torch.autograd.grad(sums.weighted, leaf)
    return float(sums.weighted.detach()), float(sums.kl), gradient


def dense(
    hidden: torch.Tensor,
    head: torch.Tensor,
    labels: torch.Tensor,
    teacher: torch.Tensor,
    weights: tuple[float, float, float],
) -> tuple[float, float, torch.Tensor]:
    """The same of the full distributions, float64."""
    ce_weight, kl_weight, temperature = weights
    leaf = hidden.double().requires_grad_()
    logits = leaf @ head.double().T
    ce = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    log_q = (logits / temperature).log_softmax(1)
    log_p = (teacher / temperature).log_softmax(1)
    kl = (log_p.exp() * (log_p - log_q)).sum()
    weighted = ce_weight * ce + kl_weight * kl
    (gradient,) = torch.autograd.grad(weighted, leaf)
    return float(weighted.detach()), float(kl.detach()), gradient


@pytest.mark.parametrize("temperature", [1 / s for s in NODES])
@pytest.mark.parametrize("weights", _WEIGHTS)
def test_a_whole_basis_gives_value_and_gradient_of_the_full_kl(
    temperature: float, weights: tuple[float, float]
) -> None:
    hidden, head, labels, teacher = make_problem(1, _N, _V, _D)
    found = loss_of(
        hidden,
        head,
        labels,
        with_moments(targets_of(teacher), teacher, head, orthonormal(_D)),
        (*weights, temperature),
    )
    expected = dense(hidden, head, labels, teacher, (*weights, temperature))
    assert found[:2] == pytest.approx(expected[:2], rel=1e-5)
    torch.testing.assert_close(found[2].double(), expected[2], rtol=1e-5, atol=1e-5)


def test_a_center_changes_nothing() -> None:
    hidden, head, labels, teacher = make_problem(2, _N, _V, _D)
    basis, weights = orthonormal(3), (0.2, 1.0, 4 / 3)
    center = torch.tensor([5.0, -4.0, 3.0, 2.0])
    for targets in (targets_of(teacher), _drawn(teacher)):
        plain, centered = (
            loss_of(hidden, head, labels, with_moments(targets, teacher, head, basis, c), weights)
            for c in (None, center)
        )
        assert plain[:2] == pytest.approx(centered[:2], rel=1e-5)
        torch.testing.assert_close(plain[2], centered[2], rtol=1e-4, atol=1e-5)


def test_the_same_of_two_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are of a large vocabulary, whose chunk does not stay in a core's cache."""
    hidden, head, labels, teacher = make_problem(4, _N, _V, _D)
    targets = with_moments(targets_of(teacher), teacher, head, orthonormal(3))
    found = []
    for num_bytes in (vocabulary_pass._SHARED_CACHE_BYTES, 1):
        monkeypatch.setattr(vocabulary_pass, "_SHARED_CACHE_BYTES", num_bytes)
        found.append(loss_of(hidden, head, labels, targets, (0.2, 1.0, 4 / 3)))
    assert found[0][:2] == pytest.approx(found[1][:2], rel=1e-6)
    torch.testing.assert_close(found[0][2], found[1][2])


def test_between_nodes_the_moments_are_interpolated() -> None:
    hidden, head, labels, teacher = make_problem(3, _N, _V, _D)
    targets = with_moments(targets_of(teacher), teacher, head, orthonormal(_D))
    weights = (0.0, 1.0, 1.7)
    found = loss_of(hidden, head, labels, targets, weights)
    expected = dense(hidden, head, labels, teacher, weights)
    assert found[1] == pytest.approx(expected[1], abs=2e-3)
    assert (found[2] - expected[2]).norm() < 2e-3 * expected[2].norm()
    outside = (0.0, 1.0, 2.5)
    with pytest.raises(ValueError, match="lies outside of what the cache holds"):
        loss_of(hidden, head, labels, targets, outside)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    dim=st.integers(1, _D),
    temperature=st.sampled_from([1 / s for s in NODES]),
    distance=st.floats(0.0, 3.0),
)
def test_no_position_s_gradient_is_ever_worse_than_the_bucket_s(
    seed: int, dim: int, temperature: float, distance: float
) -> None:
    """And the error is that of the bucket outside of the basis, to the last bits."""
    noise, head, labels, _ = make_problem(seed, _N, _V, _D)
    state = torch.randn(_N, _D, generator=torch.Generator().manual_seed(seed + 1))
    teacher = state.double() @ head.double().T
    hidden, basis = state + distance * noise, orthonormal(dim, seed=seed)
    targets, weights = targets_of(teacher), (0.0, 1.0, temperature)
    true = dense(hidden, head, labels, teacher, weights)[2]
    bucket = loss_of(hidden, head, labels, targets, weights)[2].double() - true
    moment = with_moments(targets, teacher, head, basis)
    error = loss_of(hidden, head, labels, moment, weights)[2].double() - true
    assert (error.norm(dim=1) <= bucket.norm(dim=1) + 1e-5).all()
    outside = bucket - bucket @ basis.double().T @ basis.double()
    torch.testing.assert_close(error, outside, rtol=1e-4, atol=2e-5)


def test_the_gradient_s_error_falls_with_the_dimension() -> None:
    hidden, head, labels, teacher = make_problem(5, _N, _V, _D)
    weights, basis = (0.0, 1.0, 2.0), orthonormal(_D)
    true = dense(hidden, head, labels, teacher, weights)[2]
    errors = [(loss_of(hidden, head, labels, targets_of(teacher), weights)[2] - true).norm()]
    for dim in range(1, _D + 1):
        targets = with_moments(targets_of(teacher), teacher, head, basis[:dim])
        errors.append((loss_of(hidden, head, labels, targets, weights)[2] - true).norm())
    assert all(later < earlier for earlier, later in pairwise(errors))
    assert errors[-1] < 1e-5 * true.norm()
    assert errors[0] > 0.1 * true.norm()


def test_a_student_that_is_its_teacher_has_no_kl_and_no_gradient() -> None:
    hidden, head, labels, _ = make_problem(6, _N, _V, _D)
    teacher = hidden.double() @ head.double().T
    targets = with_moments(targets_of(teacher), teacher, head, orthonormal(3))
    _, kl, gradient = loss_of(hidden, head, labels, targets, (0.0, 1.0, 2.0))
    assert kl == pytest.approx(0.0, abs=1e-4)
    assert gradient.abs().max() < 1e-5


def test_positions_without_a_tail_are_not_touched_by_what_is_left_of_their_moments() -> None:
    """Rounding leaves something, which must not count."""
    hidden, head, labels, teacher = make_problem(7, 3, 6, _D)
    targets = sparse(teacher, [6, 6, 6], 6)
    moment = with_moments(targets, teacher, head, orthonormal(2))
    assert moment.moments is not None
    tables = replace(moment.moments.tables, mean_ne=torch.full((5, 3), 0.5))
    wrong = replace(moment, moments=replace(moment.moments, tables=tables))
    weights = (0.3, 1.0, 4 / 3)
    plain, found = (loss_of(hidden, head, labels, t, weights) for t in (targets, wrong))
    assert found[:2] == pytest.approx(plain[:2], rel=1e-6)
    torch.testing.assert_close(found[2], plain[2])


def test_validation_has_the_same_kl() -> None:
    hidden, head, labels, teacher = make_problem(8, _N, _V, _D)
    targets = with_moments(targets_of(teacher), teacher, head, orthonormal(4))
    weights = VocabularyWeights(0.0, 1.0, 1.0)
    with torch.no_grad():
        sums = sparse_distillation_loss(hidden, head, labels, targets, weights, 5)
    trained = loss_of(hidden, head, labels, targets, (0.0, 1.0, 1.0))
    assert float(sums.kl) == pytest.approx(trained[1], rel=1e-6)


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_chunks_do_not_matter(chunk: int) -> None:
    hidden, head, labels, teacher = make_problem(9, _N, _V, _D)
    targets = with_moments(_drawn(teacher), teacher, head, orthonormal(4))
    weights = (0.3, 1.0, 2.0)
    leaf = hidden.clone().requires_grad_()
    sums = sparse_distillation_loss(leaf, head, labels, targets, VocabularyWeights(*weights), chunk)
    (gradient,) = torch.autograd.grad(sums.weighted, leaf)
    expected = loss_of(hidden, head, labels, targets, weights)
    assert float(sums.kl) == pytest.approx(expected[1], rel=1e-5)
    torch.testing.assert_close(gradient, expected[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near_the_full_kl(dtype: torch.dtype) -> None:
    hidden, head, labels, teacher = make_problem(10, _N, _V, _D)
    targets = with_moments(targets_of(teacher), teacher, head, orthonormal(_D))
    loss = SparseDistillationLoss(chunk=5, dtype=dtype, compile="off", device=hidden.device)
    leaf = hidden.clone().requires_grad_()
    sums = loss(leaf, head, labels, targets, VocabularyWeights(0.0, 1.0, 4 / 3))
    (gradient,) = torch.autograd.grad(sums.weighted, leaf)
    _, kl, true = dense(hidden, head, labels, teacher, (0.0, 1.0, 4 / 3))
    assert float(sums.kl) == pytest.approx(kl, rel=0.02)
    assert (gradient - true).norm() < 0.02 * true.norm()


def test_sampled_columns_estimate_what_moments_add() -> None:
    """With most columns drawn many times the estimate is near; with moments it is nearer."""
    torch.manual_seed(0)
    hidden, head, labels, teacher = make_problem(11, 4, 400, _D)
    head = head * 0.4
    weights = (0.0, 1.0, 4 / 3)
    true = dense(hidden, head, labels, teacher, weights)[2]
    plain, errors = sparse(teacher, [4] * 4, 4), []
    for targets in (plain, with_moments(plain, teacher, head, orthonormal(_D))):
        columns = SampledColumns(torch.arange(400), 300)
        loss = SparseDistillationLoss(
            chunk=2, dtype=torch.float32, compile="off", device=hidden.device, columns=columns
        )
        mean = torch.zeros_like(true)
        for _ in range(40):
            leaf = hidden.clone().requires_grad_()
            sums = loss(leaf, head, labels, targets, VocabularyWeights(*weights))
            mean += torch.autograd.grad(sums.weighted, leaf)[0] / 40
        errors.append(float((mean - true).norm() / true.norm()))
    assert errors[1] < 0.1 < 0.3 < errors[0]


def _drawn(teacher: torch.Tensor, seed: int = 0, num_draws: int = 9) -> SparseTargets:
    generator = torch.Generator().manual_seed(seed)
    return with_draws(targets_of(teacher), teacher, num_draws, 4 / 3, generator)


@pytest.mark.parametrize("temperature", [1.0, 4 / 3, 2.0])
def test_with_a_whole_basis_draws_add_no_noise(temperature: float) -> None:
    """The gradient is exact; the value is, too, since it takes nothing from draws then."""
    hidden, head, labels, teacher = make_problem(12, _N, _V, _D)
    targets = with_moments(_drawn(teacher), teacher, head, orthonormal(_D))
    found = loss_of(hidden, head, labels, targets, (0.2, 1.0, temperature))
    expected = dense(hidden, head, labels, teacher, (0.2, 1.0, temperature))
    assert found[1] == pytest.approx(expected[1], rel=1e-4)
    torch.testing.assert_close(found[2].double(), expected[2], rtol=1e-4, atol=2e-5)


def test_moments_take_noise_from_draws_and_add_no_bias() -> None:
    """Over many draws: the mean error vanishes, and its spread is what is left outside."""
    hidden, head, labels, teacher = make_problem(13, 1, _V, _D)
    num_trials, weights = 3000, (0.0, 1.0, 2.0)
    repeated = teacher.expand(num_trials, -1)
    plain = sparse(teacher, [4], 4)
    plain = replace(
        plain,
        kept_ids_NK=plain.kept_ids_NK.expand(num_trials, -1),
        gaps_NK=plain.gaps_NK.expand(num_trials, -1),
        tail_log_mass_NM=plain.tail_log_mass_NM.expand(num_trials, -1),
    )
    drawn = with_draws(plain, repeated, 6, 4 / 3, torch.Generator().manual_seed(0))
    one = with_moments(sparse(teacher, [4], 4), teacher, head, orthonormal(4))
    assert one.moments is not None
    moments = replace(
        one.moments, coefficients_NJ=one.moments.coefficients_NJ.expand(num_trials, -1)
    )
    true = dense(hidden, head, labels, teacher, weights)
    found = []
    for targets in (drawn, replace(drawn, moments=moments)):
        hidden_ND = hidden.expand(num_trials, -1)
        _, kl, gradient = loss_of(hidden_ND, head, labels.expand(num_trials), targets, weights)
        noise = gradient.double().std(0).norm()
        bias = (gradient.double().mean(0) - true[2][0]).norm()
        assert bias < 5 * noise / math.sqrt(num_trials)
        found.append((float(noise), kl / num_trials))
    (noise, _), (noise_with_moments, kl) = found
    assert noise_with_moments < 0.85 * noise
    assert kl == pytest.approx(true[1], rel=0.05)


@pytest.mark.skipif(not has_compiler(torch.device("cpu")), reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own
@pytest.mark.parametrize("with_columns", [False, True])
def test_the_compiled_loss_equals_the_eager_one(with_columns: bool) -> None:
    hidden, head, labels, teacher = make_problem(14, _N, 300, _D)
    targets = with_moments(_drawn(teacher), teacher, head, orthonormal(4))
    found = []
    for mode in ("off", "on"):
        torch.manual_seed(0)  # the columns that are drawn
        loss = SparseDistillationLoss(
            chunk=6,
            dtype=torch.float32,
            compile=mode,
            device=hidden.device,
            columns=SampledColumns(torch.arange(300), 90) if with_columns else None,
        )
        leaf = hidden.clone().requires_grad_()
        sums = loss(leaf, head, labels, targets, VocabularyWeights(0.3, 1.0, 4 / 3))
        found.append((float(sums.kl), torch.autograd.grad(sums.weighted, leaf)[0]))
    (eager, gradient), (compiled, compiled_gradient) = found
    assert compiled == pytest.approx(eager, rel=1e-5)
    torch.testing.assert_close(compiled_gradient, gradient, rtol=1e-4, atol=1e-5)
