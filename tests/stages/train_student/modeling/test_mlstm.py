"""The mLSTM against the package's own, in one chunk and in many; its documents and its states."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.train_student.modeling.layers.document_masks import DocumentLayout, lay_out_documents
from stages.train_student.modeling.layers.mlstm import (
    CellState,
    chosen_chunk_length,
    decay_of_positions,
    empty_cell_state,
    mlstm,
)

BATCH, HEADS, WIDTH = 2, 3, 4
Problem = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
# One chunk is the parallel form; 8 divides the lengths used below or not; 1 is all recurrence.
chunk_lengths = pytest.mark.parametrize("chunk_length", [1, 3, 8, 1000])


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
    num_positions: int,
    *row_and_position: tuple[int, int],
    has_state: bool = False,
    batch: int = BATCH,
) -> DocumentLayout:
    is_start = torch.zeros(batch, num_positions, dtype=torch.bool)
    for row, position in row_and_position:
        is_start[row, position] = True
    like = torch.empty(batch, num_positions, 1)
    return lay_out_documents(is_start, like, 4, has_state)


def run(
    problem: Problem,
    layout: DocumentLayout,
    chunk_length: int | None = None,
    state: CellState | None = None,
) -> Tensor:
    q, k, v, i, f = problem
    return mlstm((q, k, v), (i, f), layout, state, chunk_length)[0]


def cut(problem: Problem, first: int, stop: int, rows: slice = slice(None)) -> Problem:
    q, k, v, i, f = (part[rows, :, first:stop] for part in problem)
    return q, k, v, i, f


def package_mlstm(problem: Problem) -> Tensor:
    from xlstm.blocks.mlstm.backends import parallel_stabilized_simple

    q, k, v, i, f = problem
    h: Tensor = parallel_stabilized_simple(q, k, v, i[..., None], f[..., None])
    return h


def gradients(h: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1, 1, h.numel(), dtype=torch.float64).view_as(h).to(h.dtype)
    return torch.autograd.grad((h * weights).sum(), inputs)


@chunk_lengths
@pytest.mark.parametrize("gate_scale", [0.5, 2.0, 8.0])
def test_values_and_gradients_equal_the_package_s(gate_scale: float, chunk_length: int) -> None:
    problem = make_problem(30, gate_scale)
    inputs = [part.requires_grad_() for part in problem]
    ours, theirs = run(problem, layout_of(30), chunk_length), package_mlstm(problem)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    for mine, other in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-10 * float(other.abs().max()))


@pytest.mark.parametrize("num_positions", [128, 1030])
def test_float32_is_exact_to_1e_5_in_chunks_of_the_chosen_length(num_positions: int) -> None:
    exact = [part.requires_grad_() for part in make_problem(num_positions, gate_scale=1.0)]
    with torch.no_grad():
        exact[4].add_(3.0)  # as at the start of training: forget gates near 1
        exact[0].add_(0.5)
        exact[1].add_(0.5)  # away from normalisers that cancel
    single = [part.detach().float().requires_grad_() for part in exact]
    layout = layout_of(num_positions)
    expected, found = package_mlstm(tuple(exact)), run(tuple(single), layout)  # type: ignore[arg-type]
    torch.testing.assert_close(
        found.double(), expected, rtol=0, atol=1e-5 * float(expected.detach().abs().max())
    )
    for mine, other in zip(gradients(found, single), gradients(expected, exact), strict=True):
        bound = 1e-5 * float(other.abs().max())
        torch.testing.assert_close(mine.double(), other, rtol=0, atol=bound)


@chunk_lengths
@pytest.mark.parametrize("with_state", [False, True])
def test_gradients_equal_finite_differences(with_state: bool, chunk_length: int) -> None:
    layout = layout_of(7, (0, 1), (0, 4), has_state=with_state)
    state = None
    if with_state:
        empty = empty_cell_state(BATCH, HEADS, WIDTH, torch.empty(0, dtype=torch.float64))
        q, k, v, i, f = make_problem(3)
        state = mlstm((q, k, v), (i, f), layout_of(3, has_state=True), empty)[1]

    problem = make_problem(7, gate_scale=1.0)
    assert torch.autograd.gradcheck(
        lambda q, k, v, i, f: run((q, k, v, i, f), layout, chunk_length, state),
        [part.requires_grad_() for part in problem],
    )


@pytest.mark.parametrize("kind", ["normaliser", "floor"])
def test_gradients_pass_through_the_normalizer(kind: str) -> None:
    """Both sides of max(|n|, exp(−m)), each with a gradient by gates of earlier chunks."""
    problem = make_problem(12, gate_scale=0.3)
    if kind == "floor":
        problem[0].mul_(1e-3)
    inputs = [part.requires_grad_() for part in problem]
    h = run(problem, layout_of(12), 4)
    expected = package_mlstm(problem)
    late = torch.zeros_like(h)
    late[:, :, 8:] = 1.0
    found_grads = torch.autograd.grad((h * late).sum(), inputs)
    expected_grads = torch.autograd.grad((expected * late).sum(), inputs)
    for mine, other in zip(found_grads[3:], expected_grads[3:], strict=True):
        assert other[:, :, :8].abs().max() > 1e-6
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("chunk_length", [8, 1000])
@pytest.mark.parametrize("gate", [-1e4, 1e4])
def test_extreme_gates_leave_everything_finite(gate: float, chunk_length: int) -> None:
    for which in (3, 4):
        problem = make_problem(30, dtype=torch.float32)
        problem[which][:, :, 5:25] = gate
        inputs = [part.requires_grad_() for part in problem]
        h = run(problem, layout_of(30, (0, 12)), chunk_length)
        for tensor in (h, *gradients(h, inputs)):
            assert tensor.isfinite().all()


# Within a chunk of 8, one position long, over a border, from border to border, over several chunks.
PACKED = [
    *[(0, 0, 3), (0, 3, 4), (0, 4, 11), (0, 11, 16), (0, 16, 24), (0, 24, 43)],
    *[(1, 0, 42), (1, 42, 43)],
]


@chunk_lengths
@pytest.mark.parametrize(("row", "first", "stop"), PACKED)
def test_a_packed_document_equals_itself_alone_with_no_gradient_to_others(
    row: int, first: int, stop: int, chunk_length: int
) -> None:
    problem = make_problem(43, gate_scale=6.0)
    inputs = [part.requires_grad_() for part in problem]
    starts = [(at_row, start) for at_row, start, _ in PACKED if start]
    layout = layout_of(43, *starts)
    rows = slice(row, row + 1)
    packed = run(problem, layout, chunk_length)[rows, :, first:stop]
    alone = run(cut(problem, first, stop, rows), layout_of(stop - first, batch=1))
    torch.testing.assert_close(packed, alone, rtol=1e-10, atol=1e-12)
    for mine, other in zip(
        torch.autograd.grad(packed.square().sum(), inputs),
        torch.autograd.grad(alone.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)
        mine[row, :, first:stop] = 0.0
        assert not mine.any()


@pytest.mark.parametrize("chunk_length", [64, 1000])
def test_strong_forgetting_in_earlier_documents_costs_no_precision(chunk_length: int) -> None:
    """The cumulative sum over the row reaches −40,000 here, where float32 has steps of 0.004."""
    problem = make_problem(220, dtype=torch.float32)
    problem[4][:, :, :200] = -200.0
    layout = layout_of(220, (0, 200), (1, 200))
    packed = run(problem, layout, chunk_length)[:, :, 200:]
    alone = run(cut(problem, 200, 220), layout_of(20))
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


def test_strong_forgetting_in_earlier_chunks_costs_no_precision() -> None:
    """Within one document: F reaches −9,000 before the chunks that are looked at."""
    exact = make_problem(300)
    exact[4][:, :, :250] = -36.0
    single = tuple(part.float() for part in exact)
    expected = run(exact, layout_of(300))[:, :, 260:]
    found = run(single, layout_of(300))[:, :, 260:]  # type: ignore[arg-type]
    error = (found - expected).abs().max() / expected.abs().max()
    assert error < 1e-5


@chunk_lengths
@pytest.mark.parametrize("splits", [(0, 20), (0, 1, 2, 20), (0, 5, 13, 20), tuple(range(21))])
def test_continuing_from_states_equals_one_pass(splits: tuple[int, ...], chunk_length: int) -> None:
    problem = make_problem(20, gate_scale=3.0)
    starts = [(0, 5), (0, 6), (1, 12)]
    whole = run(problem, layout_of(20, *starts))
    state = empty_cell_state(BATCH, HEADS, WIDTH, whole)
    for first, stop in pairwise(splits):
        here = [(row, at - first) for row, at in starts if first <= at < stop]
        layout = layout_of(stop - first, *here, has_state=True)
        q, k, v, i, f = cut(problem, first, stop)
        h, after = mlstm((q, k, v), (i, f), layout, state, chunk_length)
        torch.testing.assert_close(h, whole[:, :, first:stop], rtol=1e-9, atol=1e-11)
        assert after is not None
        state = after


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
        mine, after = mlstm((q, k, v), (i, f), layout, ours)
        assert after is not None
        ours = after
        # Its step squeezes q, k and v in place.
        other, theirs = recurrent_step_stabilized_simple(
            *theirs, q.clone(), k.clone(), v.clone(), i[..., None], f[..., None]
        )
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)  # m starts at 0 there


def test_states_keep_no_larger_tensor_in_memory() -> None:
    problem = make_problem(64)
    q, k, v, i, f = problem
    layout = layout_of(64, has_state=True)
    _, state = mlstm((q, k, v), (i, f), layout, empty_cell_state(BATCH, HEADS, WIDTH, q), 8)
    assert state is not None
    for part in state:
        assert part.untyped_storage().nbytes() == part.nbytes
        assert not part.requires_grad


def test_gradients_of_the_cumulative_sum_equal_finite_differences() -> None:
    layout = layout_of(9, (0, 1), (0, 4), (1, 8))
    _, _, _, i, f = make_problem(9)
    assert torch.autograd.gradcheck(
        lambda f: decay_of_positions((i, f), layout, None).forgotten_BNT, f.requires_grad_()
    )


@pytest.mark.parametrize("chunk_length", [16, 1000])
def test_under_bfloat16_the_weights_stay_float32(chunk_length: int) -> None:
    q, k, v, i, f = make_problem(64, gate_scale=4.0, dtype=torch.float32)
    layout = layout_of(64, (0, 20))
    expected = run((q, k, v, i, f), layout, chunk_length)
    low = (q.bfloat16(), k.bfloat16(), v.bfloat16(), i, f)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(low, layout, chunk_length)
    assert found.dtype == torch.float32
    rounded = run((low[0].float(), low[1].float(), low[2].float(), i, f), layout, chunk_length)
    # Three roundings of 2⁻⁹ on entries that a normaliser near 0 may magnify: mean, not maximum.
    assert (found - rounded).abs().mean() < 0.01 * expected.abs().mean()


@pytest.mark.parametrize("chunk_length", [16, 1000])
def test_gradients_under_bfloat16_stay_close(chunk_length: int) -> None:
    q, k, v, i, f = make_problem(64, dtype=torch.float32)
    q, k, v = (part.bfloat16().float() for part in (q, k, v))
    inputs = [part.requires_grad_() for part in (q, k, v, i, f)]
    layout = layout_of(64, (0, 20))
    expected = gradients(run((q, k, v, i, f), layout, chunk_length), inputs)
    low = run((q.bfloat16(), k.bfloat16(), v.bfloat16(), i, f), layout, chunk_length)
    for mine, other in zip(gradients(low, inputs), expected, strict=True):
        assert mine.dtype == torch.float32
        angle = torch.nn.functional.cosine_similarity(mine.flatten(), other.flatten(), dim=0)
        assert angle > 0.999


@pytest.mark.parametrize("chunk_length", [16, 1000])
def test_float16_sums_beyond_its_range_do_not_overflow(chunk_length: int) -> None:
    q, k, v, i, f = make_problem(256, dtype=torch.float32)
    q, k, v = (torch.full_like(part, 30.0).half() for part in (q, k, v))
    with torch.autocast("cpu", dtype=torch.float16):
        found = run((q, k, v, i, f), layout_of(256), chunk_length)
    torch.testing.assert_close(found, torch.full_like(found, 30.0), rtol=1e-3, atol=0)


def largest_tensor(num_positions: int) -> int:
    """Numbers in the largest tensor that forward and backward of one head of width 4 make."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]
        largest: int = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    self.largest = max(self.largest, leaf.numel())
            return result

    q, k, v = torch.ones(3, 1, 1, num_positions, WIDTH).requires_grad_().unbind()
    i, f = torch.ones(2, 1, 1, num_positions).requires_grad_().unbind()
    is_start = torch.arange(num_positions)[None] == 7
    with Sizes() as sizes:  # type: ignore[no-untyped-call]
        layout = lay_out_documents(is_start, torch.empty(1, num_positions, 1), 4, False)
        torch.autograd.grad(run((q, k, v, i, f), layout).sum(), (q, k, v, i, f))
    largest: int = sizes.largest
    return largest


def test_no_tensor_grows_with_the_square_of_the_length() -> None:
    assert largest_tensor(1025) < 1025 * 128
    assert largest_tensor(4096) == 2 * largest_tensor(2048)


@pytest.mark.parametrize(
    ("num_positions", "head_width", "expected"),
    [
        *[(1, 16, 1), (128, 16, 128), (129, 16, 64), (8192, 16, 64), (129, 127, 64)],
        *[(256, 128, 256), (257, 128, 128), (512, 192, 128), (512, 768, 512), (1025, 768, 256)],
    ],
)
def test_short_sequences_are_one_chunk(num_positions: int, head_width: int, expected: int) -> None:
    assert chosen_chunk_length(num_positions, head_width) == expected


def test_chunks_have_even_lengths_and_are_laid_out_once() -> None:
    layout = layout_of(20, (0, 5))
    chunks = layout.chunks(8)
    assert (chunks.num, chunks.length) == (3, 7)
    assert layout.chunks(8) is chunks
    assert layout.chunks(20).num == 1
