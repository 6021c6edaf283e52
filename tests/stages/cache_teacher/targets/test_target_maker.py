"""Targets against the dense formulas in float64, with ties, padding and every k.

P positions, V vocabulary, D width, K kept, N nodes.
"""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cache_format.metadata.spec_parts.targets import Draws, KeptLogits, TargetSpec
from stages.cache_teacher.targets.kinds import kind_of
from stages.cache_teacher.targets.logit_blocks import blocks_of, largest
from stages.cache_teacher.targets.target_maker import IdTargets
from stages.cache_teacher.targets.teacher_head import Head
from stages.cache_teacher.targets.top_k import make_maker
from stages.compute.compiling import has_compiler
from tests.support.sample_cache import sample_shared

NODES = (0.5, 0.625, 0.75, 0.875, 1.0)
V = 97


def spec_of(top_k: int, **changes: Any) -> TargetSpec:
    """Targets of the largest logits; ``changes`` replace fields of ``KeptLogits``."""
    settings: dict[str, Any] = {
        "top_k": top_k,
        "keep_mass": 1.0,
        "inverse_temperatures": NODES,
    }
    return TargetSpec(kind="top_k", kept=KeptLogits(**(settings | changes)))


def logits_PV(num_positions: int, seed: int = 0, scale: float = 3.0, v: int = V) -> torch.Tensor:
    """Peaked logits, as a trained model's are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_positions, v, generator=generator).pow(3) * scale / 3


def made(
    hidden_PD: torch.Tensor, head: Head, spec: TargetSpec, chunk: int = 7, compile: Any = "off"
) -> IdTargets:
    """Label t is t modulo the vocabulary; nothing is drawn."""
    maker = make_maker(head, spec, sample_shared(), chunk=chunk, compile=compile)
    labels_P = torch.arange(len(hidden_PD)) % head.vocab_size
    return maker.make(hidden_PD, labels_P, torch.empty(len(hidden_PD), 0))


def targets_of(
    logits: torch.Tensor, spec: TargetSpec, chunk: int = 7, compile: Any = "off"
) -> IdTargets:
    """Targets of given logits: the head is the identity."""
    num_ids = logits.shape[1]
    return made(logits, Head(torch.eye(num_ids), num_ids), spec, chunk, compile)


def exact_top_k(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Through blocks, the last of which is padded."""
    num_padding = -logits.shape[1] % 64
    padded_CV = torch.nn.functional.pad(logits, (0, num_padding), value=-torch.inf)
    found = largest(padded_CV, blocks_of(padded_CV, (1.0,)), top_k)
    return found.values_CK, found.ids_CK


def dense_order(logits: torch.Tensor) -> np.ndarray:
    """Ids by falling logit, the lowest id first on a tie."""
    return np.argsort(-logits.numpy(), axis=1, kind="stable")


def check_against_dense(logits: torch.Tensor, targets: IdTargets, nodes: tuple[float, ...]) -> None:
    """Every field against float64, given how many ids are kept."""
    z_PV = logits.double().numpy()
    order_PV = dense_order(logits)
    for p, (z_V, order_V) in enumerate(zip(z_PV, order_PV, strict=True)):
        n = int(targets.num_kept_P[p])
        kept, left = order_V[:n], order_V[n:]
        assert targets.kept_ids_PK[p, :n].tolist() == kept.tolist()
        gaps = z_V[kept[0]] - z_V[kept]
        np.testing.assert_allclose(targets.logit_gaps_PK[p, :n], gaps, atol=2e-6)
        for at, node in enumerate(nodes):
            expected = np.logaddexp.reduce((z_V[left] - z_V[kept[0]]) * node, initial=-np.inf)
            close(float(targets.tail_log_mass_PN[p, at]), expected)
        close(float(targets.next_logprob_P[p]), z_V[p % V] - np.logaddexp.reduce(z_V))


def close(found: float, expected: float) -> None:
    """Within 1e-4 nats; beyond 100 nats, within the rounding of the float32 logits."""
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-6)


@pytest.mark.parametrize("top_k", [1, 2, 16, V - 1, V])
@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
def test_all_targets_equal_the_dense_formulas(top_k: int, scale: float) -> None:
    logits = logits_PV(20, scale=scale)
    targets = targets_of(logits, spec_of(top_k))
    assert targets.num_kept_P.tolist() == [top_k] * 20
    check_against_dense(logits, targets, NODES)


def test_keeping_the_whole_vocabulary_leaves_no_tail() -> None:
    targets = targets_of(logits_PV(5), spec_of(V))
    assert torch.isneginf(targets.tail_log_mass_PN).all()


@pytest.mark.parametrize("nodes", [(1.0,), (0.125, 1.0), (0.5, 0.75, 1.0), (0.125, 0.875, 1.0)])
def test_targets_equal_the_dense_formulas_at_other_temperature_nodes(
    nodes: tuple[float, ...],
) -> None:
    logits = logits_PV(6)
    targets = targets_of(logits, spec_of(10, inverse_temperatures=nodes))
    assert targets.tail_log_mass_PN.shape == (6, len(nodes))
    check_against_dense(logits, targets, nodes)


@pytest.mark.parametrize("depth", [50.0, 120.0, 1000.0])
def test_a_tail_of_any_depth_keeps_its_precision(depth: float) -> None:
    logits = logits_PV(4, scale=0.5)
    logits[:, :3] += depth
    check_against_dense(logits, targets_of(logits, spec_of(3)), NODES)


@pytest.mark.parametrize("chunk", [1, 3, 20, 1000])
def test_the_chunk_size_does_not_change_the_targets(chunk: int) -> None:
    logits = logits_PV(20)
    one, other = targets_of(logits, spec_of(8), chunk), targets_of(logits, spec_of(8), 20)
    assert one.kept_ids_PK.tolist() == other.kept_ids_PK.tolist()
    np.testing.assert_allclose(one.tail_log_mass_PN, other.tail_log_mass_PN, rtol=2e-6, atol=2e-6)


@given(
    levels=st.lists(st.lists(st.integers(0, 4), min_size=12, max_size=12), min_size=1, max_size=5),
    top_k=st.integers(1, 12),
)
def test_the_lowest_id_wins_every_tie(levels: list[list[int]], top_k: int) -> None:
    logits = torch.tensor(levels, dtype=torch.float32)
    values, ids = exact_top_k(logits, top_k)
    assert ids.tolist() == dense_order(logits)[:, :top_k].tolist()
    assert values.tolist() == logits.gather(1, ids).tolist()


def test_ties_across_a_large_vocabulary_go_to_the_lowest_ids() -> None:
    logits = logits_PV(8, v=20_000).round()  # hundreds of equals at the k-th place
    _, ids = exact_top_k(logits.clone(), 64)
    assert ids.tolist() == dense_order(logits)[:, :64].tolist()


@pytest.mark.parametrize("keep_mass", [0.01, 0.5, 0.9, 0.999])
def test_keep_mass_keeps_the_smallest_number_that_reaches_it(keep_mass: float) -> None:
    logits = logits_PV(30)
    targets = targets_of(logits, spec_of(16, keep_mass=keep_mass))
    p_PV = torch.softmax(logits.double(), 1).sort(1, descending=True).values.numpy()
    for n, p_V in zip(targets.num_kept_P, p_PV, strict=True):
        assert 1 <= n <= 16
        assert n == 1 or p_V[: n - 1].sum() < keep_mass + 1e-6
        assert n == 16 or p_V[:n].sum() >= keep_mass - 1e-6
    check_against_dense(logits, targets, NODES)
    assert len(set(targets.num_kept_P.tolist())) > 1 or keep_mass == 0.01


def test_keep_mass_applies_when_the_whole_vocabulary_may_be_kept() -> None:
    logits = logits_PV(10)
    targets = targets_of(logits, spec_of(V, keep_mass=0.8))
    assert targets.num_kept_P.max() < V
    check_against_dense(logits, targets, NODES)


def test_padding_rows_of_the_head_have_no_mass() -> None:
    """In eighths, whose products have exact sums: in any order, as chunks may have another."""
    generator = torch.Generator().manual_seed(0)
    hidden_PD = torch.randn(9, 16, generator=generator).mul(8).round().div(8)
    weight_VD = torch.randn(V + 11, 16, generator=generator).mul(8).round().div(8)
    weight_VD[V:] *= 10  # would win everywhere
    head = Head(weight_VD, V)
    targets = made(hidden_PD, head, spec_of(V), 4)
    assert targets.kept_ids_PK.max() < V
    check_against_dense(hidden_PD @ weight_VD[:V].T, targets, NODES)


def test_half_precision_is_multiplied_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden_PD = torch.randn(9, 256, generator=generator).bfloat16()
    weight_VD = torch.randn(V, 256, generator=generator).bfloat16()
    logits = Head(weight_VD, V).logits(hidden_PD)
    assert logits.dtype == torch.float32
    exact = hidden_PD.double() @ weight_VD.double().T
    torch.testing.assert_close(logits.double(), exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf")])
@pytest.mark.parametrize("position", [0, 7, 19])
def test_non_finite_logits_are_detected(bad: float, position: int) -> None:
    logits = logits_PV(20)
    logits[position, 50] = bad
    targets = made(logits, Plain(), spec_of(8))
    assert torch.isfinite(targets.log_z_P).logical_not().nonzero().tolist() == [[position]]


def test_a_logit_of_minus_infinity_is_allowed() -> None:
    logits = logits_PV(20)
    logits[:, 3:90] = -torch.inf
    check_against_dense(logits, made(logits, Plain(), spec_of(8)), NODES)


class Plain(Head):
    """A head that hands its input on, so that one bad logit stays one."""

    def __init__(self) -> None:
        self.vocab_size = V
        self.device = torch.device("cpu")

    def padded_logits(self, hidden_CD: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(hidden_CD, (0, -V % 64), value=-torch.inf)


def test_no_positions_give_empty_targets() -> None:
    targets = targets_of(logits_PV(0), spec_of(8))
    assert targets.kept_ids_PK.shape == targets.logit_gaps_PK.shape == (0, 8)
    assert targets.tail_log_mass_PN.shape == (0, 5)


def test_memory_is_bounded_by_the_chunk() -> None:
    seen: list[int] = []

    class Watched(Plain):
        def padded_logits(self, hidden_CD: torch.Tensor) -> torch.Tensor:
            seen.append(len(hidden_CD))
            return super().padded_logits(hidden_CD)

    made(logits_PV(20), Watched(), spec_of(8), chunk=6)
    assert seen == [6, 6, 6, 2]


class StoppedByCheck(Exception):
    """Raised by a check."""


def test_making_targets_can_be_stopped_between_chunks() -> None:
    maker = make_maker(Head(torch.eye(V), V), spec_of(8), sample_shared(), chunk=7, compile="off")
    chunks: list[int] = []

    class Counting(Head):
        def padded_logits(self, hidden_CD: torch.Tensor) -> torch.Tensor:
            chunks.append(len(hidden_CD))
            return super().padded_logits(hidden_CD)

    def check() -> None:
        if len(chunks) == 2:
            raise StoppedByCheck

    maker = make_maker(
        Counting(torch.eye(V), V), spec_of(8), sample_shared(), chunk=7, compile="off"
    )
    with pytest.raises(StoppedByCheck):
        maker.make(logits_PV(40), torch.zeros(40, dtype=torch.int64), torch.empty(40, 0), check)
    assert chunks == [7, 7]


@pytest.mark.parametrize(
    ("spec", "num_draws"),
    [
        (spec_of(8), 0),
        (TargetSpec(kind="sampled", draws=Draws(num_draws=6, inverse_temperature=1.0)), 6),
        (
            TargetSpec(
                kind="top_k+sampled",
                kept=spec_of(8).kept,
                draws=Draws(num_draws=5, inverse_temperature=0.75),
            ),
            5,
        ),
    ],
    ids=["top_k", "sampled", "top_k+sampled"],
)
def test_no_recompilation_happens_after_the_first_compilation(
    monkeypatch: pytest.MonkeyPatch, spec: TargetSpec, num_draws: int
) -> None:
    original = torch.compile

    def traced(function: Any, **settings: Any) -> Any:
        return original(function, backend="eager", **settings)

    monkeypatch.setattr(torch, "compile", traced)
    maker = kind_of(spec).make_maker(
        Head(torch.eye(V), V), spec, sample_shared(), chunk=7, compile="on"
    )
    assert kind_of(spec).num_uniform(spec) == num_draws
    maker.compile(num_draws)
    with torch.inference_mode(), torch.compiler.set_stance("fail_on_recompile"):
        for num_positions in (2, 7, 40):
            maker.make(
                logits_PV(num_positions),
                torch.zeros(num_positions, dtype=torch.int64),
                torch.full((num_positions, num_draws), 0.5, dtype=torch.float64),
            )


@pytest.mark.skipif(not has_compiler(torch.device("cpu")), reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own
def test_compiled_targets_equal_eager_ones() -> None:
    logits = logits_PV(20, v=1000)
    logits[5, 200:400] = logits[5].max()  # ties
    plain, compiled = (targets_of(logits, spec_of(8), compile=mode) for mode in ("off", "on"))
    assert torch.equal(plain.kept_ids_PK, compiled.kept_ids_PK)
    assert torch.equal(plain.logit_gaps_PK, compiled.logit_gaps_PK)
    torch.testing.assert_close(plain.tail_log_mass_PN, compiled.tail_log_mass_PN)
    torch.testing.assert_close(plain.next_logprob_P, compiled.next_logprob_P)


@pytest.mark.parametrize("temperature", [1.0, 1.1, 1.37, 1.8, 2.0])
def test_the_nodes_determine_the_tail_at_any_temperature(temperature: float) -> None:
    """Lagrange's polynomial through the nodes in 1/T, as stage two evaluates it."""
    logits = logits_PV(200, scale=4.0, v=2000)
    targets = targets_of(logits, spec_of(64))
    s, nodes = 1 / temperature, np.array(NODES)
    weights = [
        np.prod([(s - other) / (node - other) for other in nodes if other != node])
        for node in nodes
    ]
    found = targets.tail_log_mass_PN.double().numpy() @ np.array(weights)
    z_PV = logits.double()
    left = z_PV - z_PV.amax(1, keepdim=True)
    left.scatter_(1, targets.kept_ids_PK.long(), -torch.inf)
    expected = torch.logsumexp(left * s, 1).numpy()
    assert np.abs(found - expected).max() < 0.01
