"""The mLSTM as a weighted average against its recurrence, position by position in float64."""

import math
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from stages.train_student.modeling.layers.document_masks import DocumentLayout
from stages.train_student.modeling.layers.normalized_mlstm import (
    MemoryState,
    empty_memory_state,
    normalized_mlstm,
)
from tests.support.packed_layers import (
    Start,
    document_indices,
    gradients,
    largest_tensor,
    layout_of,
    layout_of_part,
    saved_bytes,
)

BATCH, HEADS, GROUP, FEATURES, WIDTH = 2, 2, 3, 6, 4
# One chunk is the parallel form; 8 divides the lengths used below or not; 1 is all recurrence.
chunk_lengths = pytest.mark.parametrize("chunk_length", [1, 3, 8, 1000])
# Within a chunk of 8, one position long, over a border, from border to border, over several chunks.
PACKED = [
    *[(0, 0, 3), (0, 3, 4), (0, 4, 11), (0, 11, 16), (0, 16, 24), (0, 24, 43)],
    *[(1, 0, 42), (1, 42, 43)],
]
STARTS = [(row, first) for row, first, _ in PACKED if first]


class Problem(NamedTuple):
    query: Tensor
    key: Tensor
    value: Tensor
    input_gate: Tensor
    forget_gate: Tensor

    def cut(self, first: int, stop: int, rows: slice = slice(None)) -> "Problem":
        query = self.query[rows, :, :, first:stop]
        return Problem(query, *(part[rows, :, first:stop] for part in self[1:]))

    def lowered(self, dtype: torch.dtype) -> "Problem":
        """With float32 gates, as autocast gives them."""
        query, key, value = (part.to(dtype) for part in self[:3])
        return Problem(query, key, value, self.input_gate.float(), self.forget_gate.float())

    def leaves(self, dtype: torch.dtype = torch.float64) -> "Problem":
        return Problem(*(part.detach().to(dtype).requires_grad_() for part in self))


def make_problem(num_positions: int, gate_scale: float = 2.0) -> Problem:
    generator = torch.Generator().manual_seed(num_positions)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Problem(
        normal(BATCH, HEADS, GROUP, num_positions, FEATURES).softmax(-1),
        normal(BATCH, HEADS, num_positions, FEATURES).softmax(-1),
        normal(BATCH, HEADS, num_positions, WIDTH),
        normal(BATCH, HEADS, num_positions) * gate_scale,
        normal(BATCH, HEADS, num_positions) * gate_scale,
    )


def recurrent(problem: Problem, *starts: Start) -> Tensor:
    """h_t from S_t and z_t, as they are written, without any stabiliser."""
    query, key, value, input_gate, forget_gate = problem
    batch, heads, num_positions, width = value.shape
    index_BT = document_indices(batch, num_positions, *starts)
    kept = forget_gate.sigmoid()
    kept = torch.where((index_BT.diff(prepend=index_BT[:, :1]) > 0)[:, None], 0.0, kept)
    matrix = value.new_zeros(batch, heads, key.shape[-1], width)
    normaliser = value.new_zeros(batch, heads, key.shape[-1])
    hidden = []
    for t in range(num_positions):
        new = input_gate[:, :, t, None].exp() * key[:, :, t]
        matrix = kept[:, :, t, None, None] * matrix + new[..., None] * value[:, :, t, None]
        normaliser = kept[:, :, t, None] * normaliser + new
        q = query[:, :, :, t]
        hidden.append((q @ matrix) / (q @ normaliser[..., None]))
    return torch.stack(hidden, 3)


def call(
    problem: Problem,
    layout: DocumentLayout,
    chunk_length: int | None = None,
    state: MemoryState | None = None,
) -> tuple[Tensor, MemoryState | None]:
    query, key, value, *gates = problem
    pair = gates[0], gates[1]
    return normalized_mlstm((query, key), value, pair, layout, state, chunk_length)


def run(problem: Problem, layout: DocumentLayout, chunk_length: int | None = None) -> Tensor:
    return call(problem, layout, chunk_length)[0]


def by_position(part: Tensor) -> Tensor:
    """[B, N, …, T, …] as [B, T, …]."""
    return part.movedim(3, 1) if part.ndim == 5 else part.movedim(2, 1)


def empty_state(dtype: torch.dtype = torch.float64) -> MemoryState:
    return empty_memory_state(BATCH, HEADS, FEATURES, WIDTH, torch.empty(0, dtype=dtype))


def assert_close_to_largest(found: Tensor, expected: Tensor, relative: float) -> None:
    atol = relative * float(expected.detach().abs().max())
    torch.testing.assert_close(found.to(expected.dtype), expected, rtol=0, atol=atol)


@chunk_lengths
@pytest.mark.parametrize("starts", [[], STARTS])
@pytest.mark.parametrize("gate_scale", [0.5, 8.0])
def test_values_and_gradients_equal_the_recurrence(
    gate_scale: float, starts: list[Start], chunk_length: int
) -> None:
    problem = make_problem(43, gate_scale).leaves()
    found = run(problem, layout_of(BATCH, 43, *starts), chunk_length)
    expected = recurrent(problem, *starts)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    for mine, other in zip(gradients(found, problem), gradients(expected, problem), strict=True):
        assert_close_to_largest(mine, other, 1e-11)


@pytest.mark.parametrize("num_positions", [1, 63, 128, 129, 1030])
def test_float32_is_exact_to_1e_5_in_chunks_of_the_chosen_length(num_positions: int) -> None:
    exact = make_problem(num_positions, gate_scale=1.0)
    exact.forget_gate.add_(3.0)  # as at the start of training: forget gates near 1
    exact, single = exact.leaves(), exact.leaves(torch.float32)
    found = run(single, layout_of(BATCH, num_positions))
    expected = recurrent(exact)
    assert_close_to_largest(found, expected, 1e-5)
    for mine, other in zip(gradients(found, single), gradients(expected, exact), strict=True):
        # All but the value of a single position has no gradient, up to rounding.
        atol = 1e-5 * float(other.abs().max()) if num_positions > 1 else 1e-6
        torch.testing.assert_close(mine.double(), other, rtol=0, atol=atol)


@pytest.mark.parametrize("chunk_length", [1, 3, 1000])
@pytest.mark.parametrize("with_state", [False, True])
def test_gradients_equal_finite_differences(with_state: bool, chunk_length: int) -> None:
    layout = layout_of(BATCH, 7, (0, 1), (0, 4), has_state=with_state)
    state = None
    if with_state:
        state = call(make_problem(3), layout_of(BATCH, 3, has_state=True), None, empty_state())[1]
    assert torch.autograd.gradcheck(
        lambda *parts: call(Problem(*parts), layout, chunk_length, state)[0],
        tuple(make_problem(7, gate_scale=1.0).leaves()),
    )


def test_gradients_of_a_single_step_equal_finite_differences() -> None:
    before = call(make_problem(3), layout_of(BATCH, 3, has_state=True), None, empty_state())[1]
    for state in (before, empty_state()):
        assert torch.autograd.gradcheck(
            lambda *parts: call(
                Problem(*parts),
                layout_of(BATCH, 1, has_state=True),
                None,
                state,  # noqa: B023
            )[0],
            tuple(make_problem(1, gate_scale=1.0).leaves()),
        )


@chunk_lengths
@pytest.mark.parametrize(("row", "first", "stop"), PACKED)
def test_a_packed_document_equals_itself_alone_with_no_gradient_to_others(
    row: int, first: int, stop: int, chunk_length: int
) -> None:
    problem = make_problem(43, gate_scale=6.0).leaves()
    rows = slice(row, row + 1)
    packed = run(problem, layout_of(BATCH, 43, *STARTS), chunk_length)[rows, :, :, first:stop]
    alone = run(problem.cut(first, stop, rows), layout_of(1, stop - first))
    torch.testing.assert_close(packed, alone, rtol=1e-10, atol=1e-12)
    for mine, other in zip(
        torch.autograd.grad(packed.square().sum(), problem),
        torch.autograd.grad(alone.square().sum(), problem),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)
        elsewhere = torch.ones(BATCH, 43, dtype=torch.bool)
        elsewhere[row, first:stop] = False
        assert not by_position(mine)[elsewhere].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk_length", [3, 8, 1000])
def test_what_other_documents_hold_changes_no_bit(chunk_length: int, dtype: torch.dtype) -> None:
    """Neither forward nor backward, nor in the state; other rows are other documents, too."""
    problem = make_problem(43)
    layout = layout_of(BATCH, 43, *STARTS, has_state=True)
    index_BT = document_indices(BATCH, 43, *STARTS)
    for row, number in ((0, 2), (0, 5), (1, 0)):
        is_own_BT = torch.zeros(BATCH, 43, dtype=torch.bool)
        is_own_BT[row] = index_BT[row] == number
        results = []
        for factor in (1.0, 7.3):
            changed = problem.leaves()
            with torch.no_grad():
                for part in changed:
                    by_position(part)[~is_own_BT] *= factor
            changed = changed.leaves(dtype)
            hidden, state = call(changed, layout, chunk_length, empty_state(dtype))
            assert state is not None
            of_positions = (hidden, *gradients(hidden, changed))
            results.append([by_position(part)[is_own_BT] for part in of_positions])
            if is_own_BT[row, -1]:
                results[-1] += [part[row] for part in state]
        for one, other in zip(*results, strict=True):
            assert torch.equal(one, other)


@chunk_lengths
@pytest.mark.parametrize("splits", [(0, 20), (0, 1, 2, 20), (0, 5, 13, 20), tuple(range(21))])
def test_continuing_from_states_equals_one_pass(splits: tuple[int, ...], chunk_length: int) -> None:
    problem = make_problem(20, gate_scale=3.0)
    starts = [(0, 5), (0, 6), (1, 12)]
    expected = recurrent(problem, *starts)
    state: MemoryState | None = empty_state()
    for first, stop in pairwise(splits):
        layout = layout_of_part(BATCH, first, stop, *starts)
        found, state = call(problem.cut(first, stop), layout, chunk_length, state)
        torch.testing.assert_close(found, expected[:, :, :, first:stop], rtol=1e-9, atol=1e-11)


def test_a_state_has_rows_no_gradient_and_no_larger_tensor_in_memory() -> None:
    problem = make_problem(64).leaves()
    _, state = call(problem, layout_of(BATCH, 64, has_state=True), 8, empty_state())
    assert state is not None
    for part in state:
        assert part.untyped_storage().nbytes() == part.nbytes
        assert not part.requires_grad
    chosen = state.rows(torch.tensor([1, 1, 0]))
    for part, one in zip(state, chosen, strict=True):
        assert torch.equal(one, part[[1, 1, 0]])


def test_a_forget_gate_of_almost_1_is_not_rounded_away_over_many_steps() -> None:
    """A step forgets 1e-7 of what is kept on a scale of e⁵⁰, where float32 has steps of 4e-6."""
    num_steps = 2000
    problem = make_problem(num_steps, gate_scale=0.0)
    problem.input_gate[:, :, 0] = 50.0
    problem.input_gate[:, :, 1:-1] = -math.inf
    problem.forget_gate.fill_(16.0)
    problem.input_gate[:, :, -1] = 50.0
    single = Problem(*(part.float() for part in problem))
    state: MemoryState | None = empty_state(torch.float32)
    for first in range(num_steps):
        layout = layout_of(BATCH, 1, has_state=True)
        found, state = call(single.cut(first, first + 1), layout, None, state)
    expected = recurrent(problem)[:, :, :, -1:]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("chunk_length", [8, 1000])
@pytest.mark.parametrize("gate", [-math.inf, -1e4, -50.0, 50.0, 1e4])
@pytest.mark.parametrize("which", ["input_gate", "forget_gate"])
def test_extreme_gates_leave_everything_finite(which: str, gate: float, chunk_length: int) -> None:
    if which == "forget_gate" and gate == -math.inf:
        gate = -1e6
    for first, stop in ((0, 20), (5, 25), (0, 30)):
        problem = make_problem(30)
        getattr(problem, which)[:, :, first:stop] = gate
        single = problem.leaves(torch.float32)
        layout = layout_of(BATCH, 30, (0, 12), has_state=True)
        found, state = call(single, layout, chunk_length, empty_state(torch.float32))
        assert state is not None
        for tensor in (found, *gradients(found, single), *state):
            assert tensor.isfinite().all()
        if abs(gate) == 50:
            assert_close_to_largest(found, recurrent(problem, (0, 12)), 1e-4)


@chunk_lengths
def test_only_differences_of_input_gates_count(chunk_length: int) -> None:
    """So a document of shut gates is as good as one of open ones."""
    problem = make_problem(30)
    expected = recurrent(problem)
    for shift in (-1e4, 1e4):
        shifted = problem._replace(input_gate=problem.input_gate + shift)
        found = run(shifted, layout_of(BATCH, 30), chunk_length)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("chunk_length", [64, None])
def test_strong_forgetting_long_ago_costs_no_precision(chunk_length: int | None) -> None:
    """The cumulative sum reaches −90,000, where float32 has steps of 0.008."""
    problem = make_problem(2600)
    problem.forget_gate[:, :, :2500] = -36.0
    single = Problem(*(part.float() for part in problem))
    found = run(single, layout_of(BATCH, 2600, (1, 30)), chunk_length)[..., 2570:, :]
    assert_close_to_largest(found, recurrent(problem, (1, 30))[..., 2570:, :], 1e-5)


def test_queries_that_fit_no_key_get_0_and_finite_gradients() -> None:
    problem = make_problem(20)
    problem.query[..., :3] = 0.0
    problem.key[..., 3:] = 0.0
    single = problem.leaves(torch.float32)
    found = run(single, layout_of(BATCH, 20), 8)
    assert not found.any()
    for grad in gradients(found, single):
        assert not grad.any()


@pytest.mark.parametrize("chunk_length", [16, 1000])
def test_under_bfloat16_sums_stay_float32(chunk_length: int) -> None:
    layout = layout_of(BATCH, 64, (0, 20), has_state=True)
    rounded = make_problem(64).lowered(torch.bfloat16).leaves(torch.float32)
    expected = call(rounded, layout, chunk_length, empty_state(torch.float32))[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, state = call(
            rounded.lowered(torch.bfloat16), layout, chunk_length, empty_state(torch.float32)
        )
    assert state is not None
    assert [part.dtype for part in (found, *state)] == [*3 * [torch.float32], torch.float64]
    # An average of values of about 1, with roundings of 2⁻⁹.
    assert (found - expected).abs().max() < 0.02
    for mine, other in zip(gradients(found, rounded), gradients(expected, rounded), strict=True):
        assert mine.dtype == torch.float32
        angle = torch.nn.functional.cosine_similarity(mine.flatten(), other.flatten(), dim=0)
        assert angle > 0.999


def test_float16_values_are_computed_with_as_float32() -> None:
    problem = make_problem(256)
    problem.value.fill_(3e4)  # twice that is beyond float16
    with torch.autocast("cpu", dtype=torch.float16):
        found = run(problem.lowered(torch.float16), layout_of(BATCH, 256), 16)
    torch.testing.assert_close(found, torch.full_like(found, 3e4), rtol=1e-3, atol=0)


@pytest.mark.parametrize("starts", [[], [(0, 7), (1, 900)]])
def test_memory_grows_with_the_length(starts: list[Start]) -> None:
    def forward(num_positions: int) -> tuple[Tensor, Problem]:
        problem = make_problem(num_positions).leaves()
        return run(problem, layout_of(BATCH, num_positions, *starts)), problem

    saved = [saved_bytes(lambda: forward(length)) for length in (2048, 4096)]  # noqa: B023
    assert saved[1] <= 2.1 * saved[0]
    largest = [largest_tensor(lambda: gradients(*forward(n))) for n in (2048, 4096)]  # noqa: B023
    assert largest[1] <= 2.1 * largest[0]
    assert largest[0] < 2048 * BATCH * HEADS * GROUP * 128
