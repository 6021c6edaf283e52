"""The sLSTM scan against the package's own cell under autograd, and its document resets."""

import math

import pytest
import torch
from torch import Tensor

from stages.train_student.modeling.layers.slstm import Resets, ScanState, slstm_scan

HEADS, BATCH, WIDTH = 2, 3, 4


def make_problem(
    num_positions: int, dtype: torch.dtype = torch.float64, gate_scale: float = 2.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Gate pre-activations, recurrent matrices, and weights of a scalar loss on the outputs."""
    generator = torch.Generator().manual_seed(num_positions)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    gates = normal(num_positions, HEADS, BATCH, 4, WIDTH) * gate_scale
    recurrent = normal(HEADS, WIDTH, 4 * WIDTH) * 0.5
    return gates, recurrent, normal(num_positions, HEADS, BATCH, WIDTH)


def starts_at(num_positions: int, *row_and_position: tuple[int, int]) -> Resets:
    is_start = torch.zeros(num_positions, BATCH, dtype=torch.bool)
    for row, position in row_and_position:
        is_start[position, row] = True
    return Resets(is_start.any(1).tolist(), is_start)


def package_scan(gates: Tensor, recurrent: Tensor) -> Tensor:
    """The package's vanilla recurrence, in our layout."""
    from xlstm.blocks.slstm.src.vanilla import slstm_forward, slstm_pointwise_function_registry

    num_positions, heads, batch, _, width = gates.shape
    states, _, _ = slstm_forward(
        gates.permute(0, 2, 3, 1, 4).reshape(num_positions, batch, -1),
        gates.new_zeros(4, batch, heads * width),
        recurrent.transpose(1, 2),
        gates.new_zeros(4 * heads * width),
        slstm_pointwise_function_registry["slstm"],
    )
    y: Tensor = states[0][1:].view(num_positions, batch, heads, width).transpose(1, 2)
    return y


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["f32", "f64"]
)
@pytest.mark.parametrize("gate_scale", [0.5, 3.0, 10.0])
def test_values_and_gradients_equal_the_package_s(
    dtype: torch.dtype, tolerance: float, gate_scale: float
) -> None:
    gates, recurrent, weights = make_problem(40, dtype, gate_scale)
    gates.requires_grad_()
    recurrent.requires_grad_()
    ours = slstm_scan(gates, recurrent, None, None)[0]
    theirs = package_scan(gates, recurrent)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    for mine, other in zip(
        gradients((ours * weights).sum(), gates, recurrent),
        gradients((theirs * weights).sum(), gates, recurrent),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("with_state", [False, True])
def test_gradients_equal_finite_differences(with_state: bool) -> None:
    gates, recurrent, _ = make_problem(5)
    resets = starts_at(5, (0, 1), (1, 2), (2, 2), (2, 3))
    state = None
    if with_state:
        earlier, _, _ = make_problem(3)
        state = slstm_scan(earlier, recurrent, None, None)[1]
    assert torch.autograd.gradcheck(
        lambda g, r: slstm_scan(g, r, state, resets)[0],
        (gates.requires_grad_(), recurrent.requires_grad_()),
    )


def test_a_packed_document_equals_itself_alone_with_no_gradient_from_others() -> None:
    gates, recurrent, weights = make_problem(12)
    gates.requires_grad_()
    recurrent.requires_grad_()
    resets = starts_at(12, (1, 4), (1, 5), (2, 5), (0, 11))
    for row, first, stop in [(0, 0, 11), (0, 11, 12), (1, 0, 4), (1, 4, 5), (1, 5, 12), (2, 5, 12)]:
        one = slice(row, row + 1)
        packed = slstm_scan(gates, recurrent, None, resets)[0]
        alone = slstm_scan(gates[first:stop, :, one], recurrent, None, None)[0]
        torch.testing.assert_close(packed[first:stop, :, one], alone, rtol=0, atol=1e-14)
        part = weights[first:stop, :, one]
        from_packed = gradients((packed[first:stop, :, one] * part).sum(), gates)[0]
        from_alone = gradients((alone * part).sum(), gates)[0]
        torch.testing.assert_close(from_packed, from_alone, rtol=0, atol=1e-14)


def test_continuing_from_a_state_equals_one_scan() -> None:
    gates, recurrent, _ = make_problem(9)
    resets = starts_at(9, (0, 2), (1, 4), (2, 7))
    whole, final = slstm_scan(gates, recurrent, None, resets)
    state: ScanState | None = None
    for first, stop in [(0, 4), (4, 5), (5, 9)]:
        part = Resets(resets.steps[first:stop], resets.is_start_TB[first:stop])
        y, state = slstm_scan(gates[first:stop], recurrent, state, part)
        torch.testing.assert_close(y, whole[first:stop], rtol=0, atol=1e-14)
    assert state is not None
    for mine, other in zip(state, final, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-13)


@pytest.mark.parametrize("gate", range(4))
@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_saturated_gates_stay_finite(gate: int, value: float) -> None:
    gates, recurrent, weights = make_problem(6, torch.float32)
    gates[2:4, :, :, gate] = value
    gates.requires_grad_()
    y, state = slstm_scan(gates, recurrent.requires_grad_(), None, starts_at(6, (0, 3)))
    grads = gradients((y * weights).sum(), gates, recurrent)
    assert all(tensor.isfinite().all() for tensor in (y, *state, *grads))


def test_an_input_gate_closed_for_a_whole_document_still_averages_its_inputs() -> None:
    gates = torch.zeros(3, 1, 1, 4, 1)
    gates[:, :, :, 0] = -500.0
    gates[:, :, :, 2] = 1.0
    y, state = slstm_scan(gates, torch.zeros(1, 1, 4), None, None)
    torch.testing.assert_close(state.h, torch.full((1, 1, 1), math.tanh(1.0)))
    torch.testing.assert_close(y, torch.full((3, 1, 1, 1), math.tanh(1.0) / 2))


def test_memory_kept_for_backward_grows_linearly() -> None:
    def saved_bytes(num_positions: int) -> int:
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        gates, recurrent, _ = make_problem(num_positions)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            slstm_scan(gates.requires_grad_(), recurrent, None, None)
        return sum(sizes)

    per_position = (saved_bytes(80) - saved_bytes(40)) / 40
    assert per_position == 6 * HEADS * BATCH * WIDTH * 8  # four gates, h and y in float64


def test_the_recurrence_is_not_affected_by_autocast() -> None:
    gates, recurrent, weights = make_problem(8, torch.float32)
    gates.requires_grad_()
    recurrent.requires_grad_()
    expected = slstm_scan(gates, recurrent, None, None)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = slstm_scan(gates, recurrent, None, None)[0]
        found_grads = gradients((found * weights).sum(), gates, recurrent)
    assert torch.equal(found, expected)
    for mine, other in zip(
        found_grads, gradients((expected * weights).sum(), gates, recurrent), strict=True
    ):
        assert torch.equal(mine, other)
