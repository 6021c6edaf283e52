"""The mLSTM against the package's own, its documents, and its states."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from stages.train_student.student.document_layout import DocumentLayout, lay_out_documents
from stages.train_student.student.mlstm import (
    CellState,
    decay,
    empty_cell_state,
    mlstm_final_state,
    mlstm_parallel,
)

BATCH, HEADS, WIDTH = 2, 3, 4
Problem = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def make_problem(
    num_positions: int, gate_scale: float = 2.0, dtype: torch.dtype = torch.float64
) -> Problem:
    """Queries, keys, values, input-gate and forget-gate pre-activations."""
    generator = torch.Generator().manual_seed(num_positions)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    q, k, v = normal(3, BATCH, HEADS, num_positions, WIDTH)
    i, f = normal(2, BATCH, HEADS, num_positions) * gate_scale
    return q, k, v, i, f


def layout_of(
    num_positions: int, *row_and_position: tuple[int, int], has_state: bool = False
) -> DocumentLayout:
    is_start = torch.zeros(BATCH, num_positions, dtype=torch.bool)
    for row, position in row_and_position:
        is_start[row, position] = True
    return lay_out_documents(is_start, torch.empty(BATCH, num_positions, 1), 4, has_state)


def run(problem: Problem, layout: DocumentLayout, state: CellState | None = None) -> Tensor:
    q, k, v, i, f = problem
    return mlstm_parallel((q, k, v), decay(i, f, layout, state), layout, state)


def cut(problem: Problem, first: int, stop: int, rows: slice = slice(None)) -> Problem:
    q, k, v, i, f = (part[rows, :, first:stop] for part in problem)
    return q, k, v, i, f


def package_mlstm(problem: Problem) -> Tensor:
    from xlstm.blocks.mlstm.backends import parallel_stabilized_simple

    q, k, v, i, f = problem
    h: Tensor = parallel_stabilized_simple(q, k, v, i[..., None], f[..., None])
    return h


@pytest.mark.parametrize("gate_scale", [0.5, 2.0, 8.0])
def test_values_and_gradients_equal_the_package_s(gate_scale: float) -> None:
    problem = make_problem(30, gate_scale)
    inputs = [part.requires_grad_() for part in problem]
    ours, theirs = run(problem, layout_of(30)), package_mlstm(problem)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    weights = torch.linspace(-1, 1, ours.numel(), dtype=ours.dtype).view_as(ours)
    for mine, other in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((theirs * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-10 * float(other.abs().max()))


@pytest.mark.parametrize("with_state", [False, True])
def test_gradients_equal_finite_differences(with_state: bool) -> None:
    layout = layout_of(5, (0, 1), (0, 4), has_state=with_state)
    state = None
    if with_state:
        empty = empty_cell_state(BATCH, HEADS, WIDTH, torch.empty(0, dtype=torch.float64))
        _, k, v, i, f = make_problem(3)
        earlier = layout_of(3)
        state = mlstm_final_state((k, v), decay(i, f, earlier, empty), earlier, empty)

    problem = make_problem(5, gate_scale=1.0)
    assert torch.autograd.gradcheck(
        lambda q, k, v, i, f: run((q, k, v, i, f), layout, state),
        [part.requires_grad_() for part in problem],
    )


def test_a_document_is_what_it_is_alone_and_gets_no_gradient_from_others() -> None:
    problem = make_problem(40, gate_scale=6.0)
    inputs = [part.requires_grad_() for part in problem]
    layout = layout_of(40, (0, 7), (0, 8), (0, 30), (1, 39))
    for row, first, stop in [(0, 0, 7), (0, 7, 8), (0, 8, 30), (0, 30, 40), (1, 0, 39)]:
        rows = slice(row, row + 1)
        packed = run(problem, layout)[rows, :, first:stop]
        alone = run(
            cut(problem, first, stop, rows),
            lay_out_documents(None, torch.empty(1, stop - first, 1), 4, False),
        )
        torch.testing.assert_close(packed, alone, rtol=1e-10, atol=1e-12)
        for mine, other in zip(
            torch.autograd.grad(packed.square().sum(), inputs),
            torch.autograd.grad(alone.square().sum(), inputs),
            strict=True,
        ):
            torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


def test_what_earlier_documents_forgot_costs_no_precision() -> None:
    """The cumulative sum over the row reaches −40,000 here, where float32 has steps of 0.004."""
    problem = make_problem(220, dtype=torch.float32)
    problem[4][:, :, :200] = -200.0
    packed = run(problem, layout_of(220, (0, 200), (1, 200)))[:, :, 200:]
    alone = run(cut(problem, 200, 220), layout_of(20))
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("splits", [(0, 20), (0, 1, 2, 20), (0, 5, 13, 20), tuple(range(21))])
def test_going_on_from_states_equals_one_pass(splits: tuple[int, ...]) -> None:
    problem = make_problem(20, gate_scale=3.0)
    starts = [(0, 5), (0, 6), (1, 12)]
    whole = run(problem, layout_of(20, *starts))
    state = empty_cell_state(BATCH, HEADS, WIDTH, whole)
    for first, stop in pairwise(splits):
        here = [(row, at - first) for row, at in starts if first <= at < stop]
        layout = layout_of(stop - first, *here, has_state=True)
        part = cut(problem, first, stop)
        weights = decay(part[3], part[4], layout, state)
        h = mlstm_parallel(part[:3], weights, layout, state)
        torch.testing.assert_close(h, whole[:, :, first:stop], rtol=1e-9, atol=1e-11)
        state = mlstm_final_state(part[1:3], weights, layout, state)


def test_a_step_equals_the_package_s_recurrent_step() -> None:
    from xlstm.blocks.mlstm.backends import recurrent_step_stabilized_simple

    problem = make_problem(6)
    like = problem[0]
    ours = empty_cell_state(BATCH, HEADS, WIDTH, like)
    theirs = (
        like.new_zeros(BATCH, HEADS, WIDTH, WIDTH),
        like.new_zeros(BATCH, HEADS, WIDTH, 1),
        like.new_zeros(BATCH, HEADS, 1, 1),
    )
    layout = layout_of(1, has_state=True)
    for t in range(6):
        q, k, v, i, f = cut(problem, t, t + 1)
        weights = decay(i, f, layout, ours)
        mine = mlstm_parallel((q, k, v), weights, layout, ours)
        ours = mlstm_final_state((k, v), weights, layout, ours)
        # Its step squeezes q, k and v in place.
        other, theirs = recurrent_step_stabilized_simple(
            *theirs, q.clone(), k.clone(), v.clone(), i[..., None], f[..., None]
        )
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)  # m starts at 0 there


def test_under_bfloat16_the_weights_stay_float32() -> None:
    q, k, v, i, f = make_problem(64, gate_scale=4.0, dtype=torch.float32)
    layout = layout_of(64, (0, 20))
    expected = run((q, k, v, i, f), layout)
    low = (q.bfloat16(), k.bfloat16(), v.bfloat16(), i, f)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(low, layout)
    assert found.dtype == torch.float32
    rounded = run((low[0].float(), low[1].float(), low[2].float(), i, f), layout)
    # Three roundings of 2⁻⁹ on entries that a normaliser near 0 may magnify: mean, not maximum.
    assert (found - rounded).abs().mean() < 0.01 * expected.abs().mean()


def test_float16_sums_beyond_its_range_do_not_overflow() -> None:
    q, k, v, i, f = make_problem(256, dtype=torch.float32)
    q, k, v = (torch.full_like(part, 30.0).half() for part in (q, k, v))
    with torch.autocast("cpu", dtype=torch.float16):
        found = run((q, k, v, i, f), layout_of(256))
    torch.testing.assert_close(found, torch.full_like(found, 30.0), rtol=1e-3, atol=0)
