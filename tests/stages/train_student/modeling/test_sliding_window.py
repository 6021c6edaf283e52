"""Sliding-window attention with sinks against one dense, masked softmax in float64."""

from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from stages.train_student.modeling.layers.sliding_window import (
    WindowState,
    empty_window_state,
    sliding_window_attention,
)
from stages.train_student.modeling.layers.window_bands import Band
from tests.support.packed_layers import (
    Start,
    document_indices,
    gradients,
    largest_tensor,
    layout_of,
    layout_of_part,
    saved_bytes,
)

BATCH, HEADS, GROUP, WIDTH = 2, 2, 3, 4
# Alone in a row, one position long, beginning within a block and a window and at their edges.
PACKED = [
    *[(0, 0, 3), (0, 3, 4), (0, 4, 64), (0, 64, 128), (0, 128, 201)],
    *[(1, 0, 70), (1, 70, 201)],
]
STARTS = [(row, first) for row, first, _ in PACKED if first]
# Blocks are of at most 64 queries here: a window within one, of one, over several, beyond the row.
windows = pytest.mark.parametrize("window", [1, 2, 5, 64, 65, 150, 201, 1000])
sink_numbers = pytest.mark.parametrize("num_sinks", [0, 1, 4])


class Problem(NamedTuple):
    query: Tensor
    key: Tensor
    value: Tensor

    def cut(self, first: int, stop: int, rows: slice = slice(None)) -> "Problem":
        return Problem(
            self.query[rows, ..., first:stop, :],
            self.key[rows, :, first:stop],
            self.value[rows, :, first:stop],
        )

    def leaves(self, dtype: torch.dtype = torch.float64) -> "Problem":
        query, key, value = (part.detach().to(dtype).requires_grad_() for part in self)
        return Problem(query, key, value)


def make_problem(num_positions: int) -> Problem:
    generator = torch.Generator().manual_seed(num_positions)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, num_positions, WIDTH, generator=generator, dtype=torch.float64)

    return Problem(2 * normal(BATCH, HEADS, GROUP), 2 * normal(BATCH, HEADS), normal(BATCH, HEADS))


def dense(problem: Problem, window: int, num_sinks: int, *starts: Start) -> Tensor:
    query, key, value = problem
    batch, num_positions = len(query), query.shape[3]
    index_BT = document_indices(batch, num_positions, *starts)
    age_TT = torch.arange(num_positions)[:, None] - torch.arange(num_positions)
    is_same_BTT = index_BT[..., None] == index_BT[:, None]
    from_start_BT = (is_same_BTT & (age_TT > 0)).sum(-1)
    is_near_BTT = (age_TT < window) | (from_start_BT < num_sinks)[:, None]
    is_seen_BTT = is_same_BTT & (age_TT >= 0) & is_near_BTT
    scores = query @ key.mT[:, :, None] / WIDTH**0.5
    scores = scores.masked_fill(~is_seen_BTT[:, None, None], -torch.inf)
    attended: Tensor = scores.softmax(-1) @ value[:, :, None]
    return attended


def run(problem: Problem, window: int, num_sinks: int, *starts: Start) -> Tensor:
    layout = layout_of(len(problem.query), problem.query.shape[3], *starts)
    return sliding_window_attention(*problem, window, num_sinks, layout, None)[0]


def empty_state(window: int, num_sinks: int, dtype: torch.dtype = torch.float64) -> WindowState:
    like = torch.empty(0, dtype=dtype)
    return empty_window_state(BATCH, HEADS, WIDTH, (window, num_sinks), like)


def by_position(part: Tensor) -> Tensor:
    """[B, N, …, T, H] as [B, T, …]."""
    return part.movedim(-2, 1)


@windows
@sink_numbers
@pytest.mark.parametrize("starts", [[], STARTS])
def test_values_and_gradients_equal_a_dense_softmax(
    starts: list[Start], num_sinks: int, window: int
) -> None:
    problem = make_problem(201).leaves()
    found = run(problem, window, num_sinks, *starts)
    expected = dense(problem, window, num_sinks, *starts)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for mine, other in zip(gradients(found, problem), gradients(expected, problem), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("window", "num_positions"), [(512, 1300), (16, 257), (3, 1)])
def test_float32_is_exact_to_1e_5(window: int, num_positions: int) -> None:
    exact = make_problem(num_positions).leaves()
    single = exact.leaves(torch.float32)
    starts = [(0, num_positions // 2), (1, num_positions - 1)] if num_positions > 1 else []
    found, expected = run(single, window, 4, *starts), dense(exact, window, 4, *starts)
    pairs = [(found, expected)]
    pairs += zip(gradients(found, single), gradients(expected, exact), strict=True)
    for mine, other in pairs:
        atol = 1e-5 * max(1e-2, float(other.detach().abs().max()))
        torch.testing.assert_close(mine.double(), other, rtol=0, atol=atol)


@pytest.mark.parametrize("num_positions", [1, 7])
@pytest.mark.parametrize(("window", "num_sinks"), [(1, 0), (1, 2), (3, 1), (9, 2)])
def test_gradients_equal_finite_differences(
    window: int, num_sinks: int, num_positions: int
) -> None:
    state = empty_state(window, num_sinks)
    before = layout_of(BATCH, 5, has_state=True)
    after = sliding_window_attention(*make_problem(5), window, num_sinks, before, state)[1]
    starts = [(0, at) for at in (1, 4) if at < num_positions]
    layout = layout_of(BATCH, num_positions, *starts, has_state=True)
    assert torch.autograd.gradcheck(
        lambda q, k, v: sliding_window_attention(q, k, v, window, num_sinks, layout, after)[0],
        tuple(make_problem(num_positions).leaves()),
    )


@pytest.mark.parametrize("window", [1, 5, 64, 1000])
@pytest.mark.parametrize(("row", "first", "stop"), PACKED)
def test_a_packed_document_equals_itself_alone_with_no_gradient_to_others(
    row: int, first: int, stop: int, window: int
) -> None:
    problem = make_problem(201).leaves()
    rows = slice(row, row + 1)
    packed = run(problem, window, 4, *STARTS)[rows, :, :, first:stop]
    alone = run(problem.cut(first, stop, rows), window, 4)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-13)
    elsewhere = torch.ones(BATCH, 201, dtype=torch.bool)
    elsewhere[row, first:stop] = False
    for mine, other in zip(
        torch.autograd.grad(packed.square().sum(), problem),
        torch.autograd.grad(alone.square().sum(), problem),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)
        assert not by_position(mine)[elsewhere].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("window", [1, 5, 64, 150])
def test_what_other_documents_hold_changes_no_bit(window: int, dtype: torch.dtype) -> None:
    """Neither forward nor backward, nor in the state; other rows are other documents, too."""
    layout = layout_of(BATCH, 201, *STARTS, has_state=True)
    index_BT = document_indices(BATCH, 201, *STARTS)
    for row, number in ((0, 2), (0, 4), (1, 0), (1, 1)):
        is_own_BT = torch.zeros(BATCH, 201, dtype=torch.bool)
        is_own_BT[row] = index_BT[row] == number
        results = []
        for factor in (1.0, 7.3):
            problem = make_problem(201)
            for part in problem:
                by_position(part)[~is_own_BT] *= factor
            changed = problem.leaves(dtype)
            state = empty_state(window, 4, dtype)
            found, after = sliding_window_attention(*changed, window, 4, layout, state)
            assert after is not None
            of_positions = (found, *gradients(found, changed))
            results.append([by_position(part)[is_own_BT] for part in of_positions])
            if is_own_BT[row, -1]:
                results[-1] += [part[row] for part in after]
        for one, other in zip(*results, strict=True):
            assert torch.equal(one, other)


@windows
@sink_numbers
@pytest.mark.parametrize(
    "splits", [(0, 201), (0, 1, 2, 201), (0, 5, 64, 66, 130, 201), tuple(range(202))]
)
def test_continuing_from_states_equals_one_pass(
    splits: tuple[int, ...], num_sinks: int, window: int
) -> None:
    problem = make_problem(201)
    # One document begins between two calls, one right after another.
    starts = [(0, 66), (0, 67), (1, 63)]
    expected = dense(problem, window, num_sinks, *starts)
    state: WindowState | None = empty_state(window, num_sinks)
    sizes = [part.shape for part in state or ()]
    for first, stop in pairwise(splits):
        layout = layout_of_part(BATCH, first, stop, *starts)
        found, state = sliding_window_attention(
            *problem.cut(first, stop), window, num_sinks, layout, state
        )
        torch.testing.assert_close(found, expected[..., first:stop, :], rtol=0, atol=1e-12)
        assert state is not None
        assert [part.shape for part in state] == sizes
    assert state is not None
    assert state.num_seen_B.tolist() == [201 - 67, 201 - 63]


def test_a_document_that_begins_leaves_nothing_of_earlier_ones_in_the_state() -> None:
    layout = layout_of(BATCH, 20, (0, 17), (1, 19), has_state=True)
    problem = make_problem(20)
    _, state = sliding_window_attention(*problem, 8, 4, layout, empty_state(8, 4))
    assert state is not None
    for recent, first, own in (
        (state.key_BNRH, state.sink_key_BNSH, problem.key),
        (state.value_BNRH, state.sink_value_BNSH, problem.value),
    ):
        assert torch.equal(recent[0, :, -3:], own[0, :, 17:])
        assert torch.equal(first[0, :, :3], own[0, :, 17:])
        assert torch.equal(recent[1, :, -1:], own[1, :, 19:])
        assert torch.equal(first[1, :, :1], own[1, :, 19:])
        for rest in (recent[0, :, :-3], first[0, :, 3:], recent[1, :, :-1], first[1, :, 1:]):
            assert not rest.any()


def test_a_state_has_rows_no_gradient_and_no_larger_tensor_in_memory() -> None:
    problem = make_problem(64).leaves()
    layout = layout_of(BATCH, 64, has_state=True)
    _, state = sliding_window_attention(*problem, 8, 4, layout, empty_state(8, 4))
    assert state is not None
    for part in state:
        assert part.untyped_storage().nbytes() == part.nbytes
        assert not part.requires_grad
    chosen = state.rows(torch.tensor([1, 1, 0]))
    for part, one in zip(state, chosen, strict=True):
        assert torch.equal(one, part[[1, 1, 0]])


def test_no_gradient_flows_into_states() -> None:
    before = empty_state(8, 4)
    key, value, sink_key, sink_value = (part.clone().requires_grad_() for part in before[:4])
    before = WindowState(key, value, sink_key, sink_value, before.num_seen_B)
    layout = layout_of(BATCH, 3, has_state=True)
    problem = make_problem(3).leaves()
    found, _ = sliding_window_attention(*problem, 8, 4, layout, before)
    grads = torch.autograd.grad(found.sum(), (*problem, *before[:4]), allow_unused=True)
    assert [grad is None for grad in grads] == [*3 * [False], *4 * [True]]


def test_the_scale_of_scores_can_be_given() -> None:
    problem = make_problem(20)
    scaled = Problem(problem.query * 0.3 * WIDTH**0.5, problem.key, problem.value)
    layout = layout_of(BATCH, 20)
    found, _ = sliding_window_attention(*problem, 5, 2, layout, None, scale=0.3)
    torch.testing.assert_close(found, dense(scaled, 5, 2), rtol=0, atol=1e-12)


def test_under_bfloat16_the_softmax_stays_float32() -> None:
    rounded = make_problem(130).leaves(torch.bfloat16).leaves()
    rounded = Problem(rounded.query, rounded.key + 30.0, rounded.value).leaves(torch.bfloat16)
    exact = rounded.leaves()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(rounded, 40, 4, (0, 50))
    assert found.dtype == torch.bfloat16
    expected = dense(exact, 40, 4, (0, 50))
    # Scores of more than 100: rounded to bfloat16, they would be wrong by up to a half.
    assert (exact.query @ exact.key.mT[:, :, None]).abs().max() > 200
    assert (found - expected).abs().max() < 0.03
    for mine, other in zip(gradients(found, rounded), gradients(expected, exact), strict=True):
        angle = torch.nn.functional.cosine_similarity(mine.flatten(), other.flatten(), dim=0)
        assert angle > 0.99


def test_all_is_computed_in_the_precision_of_the_values() -> None:
    """As norms give float32 queries and keys under autocast, beside bfloat16 values."""
    low = make_problem(20).leaves(torch.bfloat16)
    mixed = Problem(low.query.float(), low.key.float(), low.value)
    assert torch.equal(run(mixed, 5, 2), run(low, 5, 2))


@pytest.mark.parametrize("starts", [[], [(0, 7), (1, 900)]])
def test_memory_grows_with_the_length(starts: list[Start]) -> None:
    def forward(num_positions: int) -> tuple[Tensor, Problem]:
        problem = make_problem(num_positions).leaves()
        return run(problem, 100, 4, *starts), problem

    saved = [saved_bytes(lambda: forward(length)) for length in (1024, 2048)]  # noqa: B023
    assert saved[1] <= 2.1 * saved[0]
    assert saved[0] <= 1.01 * sum(part.nbytes for part in make_problem(1024))
    largest = [largest_tensor(lambda: gradients(*forward(n))) for n in (1024, 2048)]  # noqa: B023
    assert largest[1] <= 2.1 * largest[0]


@pytest.mark.parametrize(
    ("window", "num_positions", "expected"),
    [(1, 64, [64]), (1, 65, [33, 32]), (100, 1000, 10 * [100]), (512, 513, [171, 171, 171])],
)
def test_blocks_are_even(window: int, num_positions: int, expected: list[int]) -> None:
    first_BT = torch.zeros(1, num_positions, dtype=torch.long)
    band = Band(window=window, num_sinks=4, first_BT=first_BT, num_before=0, scale=None)
    blocks = list(band.blocks(num_positions))
    assert [block.stop - block.start for block in blocks] == expected
    assert all(block.oldest == max(0, block.start - window + 1) for block in blocks)
