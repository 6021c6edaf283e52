"""The basis of the tail's moments that is fitted to a teacher, and what its step loses."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from cache_format.errors import SpecMismatchError
from cache_format.metadata.spec_parts.targets import KeptLogits, TailMoment, TargetSpec
from cache_format.tables.tail_moment import MomentTransform
from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.setup import moment_fit
from stages.cache_teacher.setup.moment_fit import fit_moment
from stages.cache_teacher.worker_share import WorkerShare
from tests.support.fake_teachers import FakeTeacher, unit
from tests.support.sample_cache import contents
from tests.support.stage_one_runs import Bench, shard_bytes

_D = 10
NODES = (0.5, 0.75, 1.0)


def targets_of(dim: int, top_k: int = 4) -> TargetSpec:
    kept = KeptLogits(top_k=top_k, keep_mass=1.0, inverse_temperatures=NODES)
    moment = TailMoment(
        dim=dim,
        step=1.0,
        num_components=1,
        num_symbols=1,
        num_classes=1,
        num_raw_bits=0,
        transform_sha256="0" * 64,
    )
    return TargetSpec(kind="top_k", kept=kept, moment=moment)


def fit(dim: int, teacher: FakeTeacher | None = None) -> tuple[TailMoment, MomentTransform]:
    typed: Any = teacher or FakeTeacher()
    return fit_moment(typed, unit(), targets_of(dim), 4)


def tails(teacher: FakeTeacher, top_k: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """p, m and H of all 1000 states at every node, float64: [1000, n], [1000, n, D], [1000, n]."""
    head = teacher.head.weight_VD.double()
    logits = teacher.states_XD.double() @ head.T
    rest = logits.scatter(1, logits.topk(top_k).indices, -torch.inf)
    found = []
    for s in NODES:
        p = ((rest * s).logsumexp(1) - (logits * s).logsumexp(1)).exp()
        r = (rest * s).softmax(1)
        found.append((p, r @ head, -torch.special.xlogy(r, r).sum(1)))
    p, m, H = (torch.stack(part, 1).numpy() for part in zip(*found, strict=True))
    return p, m, H


def vectors(teacher: FakeTeacher, moment: MomentTransform) -> np.ndarray:
    """u of all states, [1000, n, d + 1]."""
    p, m, H = tails(teacher)
    numbers = np.concatenate([m @ moment.basis.T, H[:, :, None]], 2)
    found: np.ndarray = p[:, :, None] * (numbers - moment.center)
    return found


def residual(teacher: FakeTeacher, basis: np.ndarray) -> float:
    """Σ over nodes of p²|m − m̄|² outside of a basis, a mean over states."""
    p, m, _ = tails(teacher)
    mean = np.einsum("xn,xnd->d", p**2, m) / (p**2).sum()
    centered = p[:, :, None] * (m - mean)
    outside = centered - centered @ basis.T @ basis
    return float((outside**2).sum() / len(p))


def test_the_basis_leaves_out_less_than_others() -> None:
    teacher = FakeTeacher()
    lost = [residual(teacher, fit(dim)[1].basis) for dim in (1, 2, 4, 8)]
    assert all(later < earlier for earlier, later in pairwise(lost))
    random = np.random.default_rng(0)
    for _ in range(20):
        other = np.linalg.qr(random.normal(size=(_D, 4)))[0].T
        assert residual(teacher, other) > lost[2]
    assert residual(teacher, np.eye(_D)) < 1e-20


@pytest.mark.parametrize("dim", [1, 4, 8])
def test_rounding_loses_little_beside_what_the_basis_leaves_out(dim: int) -> None:
    teacher = FakeTeacher()
    part, moment = fit(dim, teacher)
    u = vectors(teacher, moment)
    transform = moment.transform
    flat = u.reshape(len(u), -1)
    coefficients = np.rint((flat - transform.mean) @ transform.analysis.T)
    error = moment.moments(coefficients.astype(np.int16)) - u
    left_out = residual(teacher, moment.basis)
    lost = float((error[:, :, :-1] ** 2).sum() / len(u))
    assert lost / left_out > 0.05 * moment_fit._SHARE_OF_RESIDUAL
    assert lost / left_out < 1.3 * moment_fit._SHARE_OF_RESIDUAL  # of other positions
    assert part.num_components < flat.shape[1]


def test_a_whole_basis_is_rounded_to_a_thousandth() -> None:
    teacher = FakeTeacher()
    _, moment = fit(_D, teacher)
    u = vectors(teacher, moment)
    flat = u.reshape(len(u), -1)
    transform = moment.transform
    coefficients = np.rint((flat - transform.mean) @ transform.analysis.T)
    assert np.abs(coefficients).max() < 32_767
    error = moment.moments(coefficients.astype(np.int16)) - u
    total = residual(teacher, np.zeros((1, _D)))
    assert (error[:, :, :-1] ** 2).sum() / len(u) < 1.5e-6 * total


def test_components_fall_in_variance_and_the_center_is_the_mean() -> None:
    teacher = FakeTeacher()
    _, moment = fit(4, teacher)
    u = vectors(teacher, moment)
    spread = (u.reshape(len(u), -1) @ moment.transform.analysis.T).std(0)
    assert (np.diff(spread) < 0.15 * spread[:-1]).all()  # of other positions
    assert spread[0] > 2 * spread[-1]
    p, m, H = tails(teacher)
    weights = p**2 / (p**2).sum()
    expected = [*(np.einsum("xn,xnd->d", weights, m) @ moment.basis.T), (weights * H).sum()]
    np.testing.assert_allclose(moment.center, expected, rtol=0.1, atol=0.05)


def test_the_same_unit_gives_the_same_bytes() -> None:
    first, second = fit(4), fit(4)
    assert first[0] == second[0]
    assert first[1].to_bytes() == second[1].to_bytes()


def test_teachers_whose_tails_are_all_alike_get_one_component() -> None:
    teacher = FakeTeacher()
    teacher.states_XD[:] = teacher.states_XD[:1]
    part, moment = fit(2, teacher)
    assert part.num_components == 1
    assert np.isfinite(moment.transform.analysis).all()
    found = moment.moments(np.zeros((1, 1), np.int16))
    np.testing.assert_allclose(found, vectors(teacher, moment)[:1], atol=1e-5)


def test_too_few_positions_and_states_that_are_not_finite_are_refused() -> None:
    teacher: Any = FakeTeacher()
    few = PackedUnit(
        token_ids_RT=unit(1).token_ids_RT[:, :6],
        document_starts=[np.array([], np.int32)],
        num_dropped_tokens=0,
    )
    with pytest.raises(ValueError, match=r"at least 6 positions.*has 5\. Raise documents_per_unit"):
        fit_moment(teacher, few, targets_of(6), 4)
    teacher.states_XD[:] = torch.nan
    with pytest.raises(ValueError, match="hidden states are not finite"):
        fit_moment(teacher, unit(), targets_of(2), 4)


def test_a_run_begins_continues_and_repairs_a_cache_with_one_basis(bench: Bench) -> None:
    settings: dict[str, Any] = {"tail_moment_dim": 6, "top_k": 5}
    whole = bench.run("whole", **settings)
    bench.run(num_tokens=700, **settings)
    path = bench.root / "cache" / "tail_moment.bin"
    written = path.read_bytes()
    assert bench.run(**settings) == whole
    assert contents(bench.root / "cache") == contents(bench.root / "whole")
    path.unlink()
    bench.run(**settings)
    assert path.read_bytes() == written
    _, row = bench.open().read_row("train", 0)
    assert row.moment_coefficients is not None
    assert row.moment_coefficients[row.scored()].any()


def test_workers_make_the_shards_that_one_run_makes(bench: Bench) -> None:
    settings: dict[str, Any] = {"tail_moment_dim": 6, "targets": "top_k+sampled"}
    bench.run("whole", **settings)
    for number in range(3):
        bench.run(units=WorkerShare(worker=number, num_workers=3), **settings)
    assert shard_bytes(bench.root / "cache") == shard_bytes(bench.root / "whole")


def test_without_moments_a_cache_has_the_bytes_of_one_that_never_knew_them(bench: Bench) -> None:
    """All columns but the new one are the same, too."""
    bench.run("plain")
    bench.run("zero", tail_moment_dim=0)
    assert contents(bench.root / "plain") == contents(bench.root / "zero")
    bench.run("with", tail_moment_dim=3)
    for split in ("train", "validation"):
        plain, moment = (bench.open(name).read_row(split, 0)[1] for name in ("plain", "with"))
        np.testing.assert_array_equal(plain.kept.ids, moment.kept.ids)
        np.testing.assert_array_equal(plain.kept.tail_log_mass, moment.kept.tail_log_mass)
        np.testing.assert_array_equal(plain.sketch, moment.sketch)


def test_another_dimension_is_another_cache(bench: Bench) -> None:
    bench.run(tail_moment_dim=3)
    for dim in (0, 1, 4):
        with pytest.raises(SpecMismatchError, match=r"cache_teacher\.tail_moment_dim: expected"):
            bench.run(tail_moment_dim=dim)


def test_more_directions_than_the_teacher_is_wide_are_refused(bench: Bench) -> None:
    with pytest.raises(ValueError, match=r"tail_moment_dim: must be at most 32, .* found 33"):
        bench.run(tail_moment_dim=33)
    assert not (bench.root / "cache").exists()
