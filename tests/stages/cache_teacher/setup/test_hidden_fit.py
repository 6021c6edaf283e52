"""The transform of hidden states that is fitted to a teacher, and the KL that its step reaches."""

from functools import partial
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cache_format.errors import SpecMismatchError
from cache_format.metadata.spec_parts.targets import CodedStates, Quantization, TargetSpec
from cache_format.tables.hidden_transform import HiddenTransform
from cache_format.tables.shared_files import SharedFiles
from cache_format.tables.vocabulary_ranks import RankTable
from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.setup import hidden_fit
from stages.cache_teacher.setup.hidden_fit import fit_transform
from stages.cache_teacher.targets.hidden import make_maker
from tests.support.fake_teachers import FakeTeacher, unit
from tests.support.stage_one_runs import Bench

_D = 10


def fit(
    teacher: FakeTeacher,
    max_kl: float,
    packed: PackedUnit | None = None,
    quantization: Quantization = "nearest",
) -> tuple[CodedStates, HiddenTransform]:
    typed: Any = teacher
    return fit_transform(typed, packed or unit(), max_kl, 4, quantization)


def coefficients(
    teacher: FakeTeacher, hidden: CodedStates, transform: HiddenTransform
) -> NDArray[np.int16]:
    """Those that stage one would store of all states."""
    shared = SharedFiles(ranks=RankTable(np.arange(1, dtype=np.int32)), transform=transform)
    spec = TargetSpec(kind="hidden", hidden=hidden)
    maker = make_maker(teacher.head, spec, shared, chunk=64, compile="off")
    labels = torch.zeros(len(teacher.states_XD), dtype=torch.int64)
    made = maker.make(teacher.states_XD, labels, labels[:, None][:, :0])
    assert made.is_finite_P.all()
    found: NDArray[np.int16] = made.coefficients_PJ.numpy()
    return found


def kl(
    teacher: FakeTeacher, hidden: CodedStates, transform: HiddenTransform, temperature: float
) -> float:
    """KL(teacher ‖ decoded), in float64, a mean over all states."""
    states = teacher.states_XD.numpy()
    decoded = transform.states(coefficients(teacher, hidden, transform))
    head = teacher.head.weight_VD.double()
    log_p, log_q = (
        torch.log_softmax(torch.from_numpy(part).double() @ head.T / temperature, 1)
        for part in (states, decoded)
    )
    return float((log_p.exp() * (log_p - log_q)).sum(1).mean())


@pytest.mark.parametrize("quantization", get_args(Quantization))
@pytest.mark.parametrize("max_kl", [0.3, 0.05, 0.002])
def test_the_step_reaches_the_kl_that_is_asked_for(
    max_kl: float, quantization: Quantization
) -> None:
    teacher = FakeTeacher()
    hidden, transform = fit(teacher, max_kl, quantization=quantization)
    found = partial(kl, teacher, hidden, transform)
    assert hidden.self_kl[0] == pytest.approx(max_kl, rel=0.04)
    assert found(1.0) == pytest.approx(max_kl, rel=0.25)  # of other positions
    assert hidden.self_kl[2] == pytest.approx(found(2.0), rel=0.25)
    assert hidden.self_kl[1] == pytest.approx(found(1.5), rel=0.25)


def test_the_same_kl_takes_fewer_bytes_by_rate_distortion() -> None:
    teacher, sizes = FakeTeacher(), []
    for quantization in get_args(Quantization):
        hidden, transform = fit(teacher, 0.005, quantization=quantization)
        sizes.append(len(transform.code.encode(coefficients(teacher, hidden, transform))))
    of_nearest, of_rate_distortion = sizes
    assert of_rate_distortion < 0.95 * of_nearest


def test_all_components_are_read_back_exactly_but_for_rounding() -> None:
    hidden, transform = fit(FakeTeacher(), 1e-4)
    assert hidden.num_components == _D
    np.testing.assert_allclose(transform.analysis @ transform.synthesis.T, np.eye(_D), atol=1e-4)


def test_coefficients_are_uncorrelated_and_fall_in_variance() -> None:
    teacher = FakeTeacher()
    hidden, transform = fit(teacher, 1e-4)
    states = torch.cat(
        [
            teacher.states_XD[torch.from_numpy(ids[:-1]).long()][torch.from_numpy(scored)]
            for ids, scored in zip(unit().token_ids_RT, unit().scored_RT(), strict=True)
        ]
    )
    values = (states.numpy() - transform.mean) @ transform.analysis.T * hidden.step
    covariance = np.cov(values.T, bias=True)
    spread = np.sqrt(np.diag(covariance))
    assert (np.diff(spread) < 1e-6).all()
    correlation = covariance / np.outer(spread, spread)
    assert np.abs(correlation - np.eye(_D)).max() < 1e-3


def test_an_error_of_one_step_costs_half_its_square_in_nats() -> None:
    """The mean over T = 1 and 2, for a step so small that the KL is a square."""
    teacher = FakeTeacher()
    hidden, transform = fit(teacher, 1e-4)
    states = teacher.states_XD.double()
    head = teacher.head.weight_VD.double()
    costs = []
    for component in range(_D):
        moved = states + torch.from_numpy(transform.synthesis[component]).double()
        costs.append(0.0)
        for temperature in (1.0, 2.0):
            log_p, log_q = (
                torch.log_softmax(part @ head.T / temperature, 1) for part in (states, moved)
            )
            costs[-1] += float((log_p.exp() * (log_p - log_q)).sum(1).mean()) / 2
    np.testing.assert_allclose(costs, hidden.step**2 / 2, rtol=0.2)


def test_components_that_are_always_0_are_left_out() -> None:
    hidden, transform = fit(FakeTeacher(), 1.0)
    assert hidden.num_components < _D
    assert transform.analysis.shape == transform.synthesis.shape == (hidden.num_components, _D)


@pytest.mark.parametrize("vocab_size", [2, 4, 9])
def test_a_vocabulary_smaller_than_the_width_leaves_directions_without_effect(
    vocab_size: int,
) -> None:
    """The metric is singular: what the head does not see costs no byte, and nothing else."""
    teacher = FakeTeacher(vocab_size)
    hidden, _ = fit(teacher, 0.01)
    assert hidden.self_kl[0] == pytest.approx(0.01, rel=0.03)
    assert hidden.num_components < vocab_size


@pytest.mark.parametrize("quantization", get_args(Quantization))
def test_the_same_unit_gives_the_same_bytes(quantization: Quantization) -> None:
    first, second = (fit(FakeTeacher(), 0.05, quantization=quantization) for _ in range(2))
    assert first[0] == second[0]
    assert first[1].to_bytes() == second[1].to_bytes()


def test_fewer_positions_than_the_teacher_is_wide_are_refused() -> None:
    packed = PackedUnit(
        token_ids_RT=unit(1).token_ids_RT[:, :_D],
        document_starts=[np.array([], np.int32)],
        num_dropped_tokens=0,
    )
    with pytest.raises(
        ValueError, match=r"at least 10 positions.*has 9\. Raise documents_per_unit"
    ):
        fit(FakeTeacher(), 0.05, packed)


def test_states_that_are_not_finite_are_refused() -> None:
    teacher = FakeTeacher()
    teacher.states_XD[:] = torch.nan
    with pytest.raises(ValueError, match="hidden states are not finite"):
        fit(teacher, 0.05)


def test_a_kl_that_no_step_reaches_gets_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """States that are all alike have a KL of 0 at any step."""
    monkeypatch.setattr(hidden_fit, "_MAX_TRIES", 3)
    teacher = FakeTeacher()
    teacher.states_XD[:] = 1.0
    hidden, transform = fit(teacher, 0.05)
    assert hidden.self_kl == (0.0, 0.0, 0.0)
    np.testing.assert_allclose(transform.mean, 1.0)


def test_a_run_begins_continues_and_repairs_a_cache_with_one_transform(bench: Bench) -> None:
    hidden: dict[str, Any] = {"targets": "hidden", "hidden_kl": 0.03, "documents_per_unit": 20}
    whole = bench.run("whole", **hidden)
    bench.run(num_tokens=700, **hidden)
    transform = bench.root / "cache" / "transform.bin"
    written = transform.read_bytes()
    assert bench.run(**hidden) == whole
    transform.unlink()
    bench.run(**hidden)
    assert transform.read_bytes() == written
    cache = bench.open()
    states = cache.spec.targets.states
    assert (states.max_kl, states.num_components <= 32) == (0.03, True)
    _, row = cache.read_row("train", 0)
    assert row.coefficients is not None
    assert row.coefficients.shape == (32, states.num_components)
    assert not row.coefficients[~row.scored()].any()


def test_another_kl_is_another_cache(bench: Bench) -> None:
    bench.run(targets="hidden", hidden_kl=0.03, documents_per_unit=20)
    with pytest.raises(SpecMismatchError, match=r"cache_teacher\.hidden_kl: expected 0\.1, found"):
        bench.run(targets="hidden", hidden_kl=0.1, documents_per_unit=20)
