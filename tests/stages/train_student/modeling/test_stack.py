"""The walk through the package's stack against the package's own forward."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stages.train_student.modeling.distil_xlstm.package_stack import (
    StackSettings,
    make_package_stack,
    make_stack,
)
from stages.train_student.modeling.distil_xlstm.stack import (
    causal_conv,
    empty_stack_state,
    mlstm_layer_forward,
    slstm_layer_forward,
    stack_forward,
)
from stages.train_student.modeling.layers import mlstm
from stages.train_student.modeling.layers.document_masks import DocumentLayout, lay_out_documents

WIDTH, KERNEL = 32, 4


def settings(**changes: Any) -> StackSettings:
    defaults: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_blocks": 4,
        "slstm_at": (0, 2),
        "num_heads": 4,
        "conv_kernel": KERNEL,
        "qkv_block_size": 8,
        "feedforward_factor": 1.7,
        "mlstm_factor": 2.0,
        "dropout": 0.0,
    }
    return StackSettings(**(defaults | changes))


def make_noisy_stack(dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> Any:
    """A stack in which no weight is zero: the package's start values hide the recurrence."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stack = make_stack(settings(dropout=dropout))
        with torch.no_grad():
            for parameter in stack.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return stack.to(dtype)


def plain_stack(stack: Any, **changes: Any) -> nn.Module:
    """The package's own stack with the weights of ``stack``."""
    package = make_package_stack(settings(**changes)).to(next(stack.parameters()).dtype)
    package.load_state_dict(stack.state_dict())
    return package


def run(stack: nn.Module, x: Tensor, is_start: Tensor | None = None) -> Tensor:
    layout = lay_out_documents(is_start, x, KERNEL, has_state=False)
    return stack_forward(stack, x, layout, None)[0]


def make_inputs(
    num_positions: int, dtype: torch.dtype = torch.float32, batch: int = 3
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_positions)
    x, weights = torch.randn(2, batch, num_positions, WIDTH, generator=generator).to(dtype)
    return x, weights


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["f32", "f64"]
)
def test_for_one_document_the_stack_equals_the_package_s_own_forward(
    dtype: torch.dtype, tolerance: float
) -> None:
    stack = make_noisy_stack(dtype)
    package = plain_stack(stack)
    assert list(stack.state_dict()) == list(package.state_dict())
    x, weights = make_inputs(24, dtype)
    gradients = []
    outputs = []
    for parent, forward in ((stack, lambda: run(stack, x)), (package, lambda: package(x))):
        outputs.append(forward())
        gradients.append(
            torch.autograd.grad((outputs[-1] * weights).sum(), list(parent.parameters()))
        )
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=tolerance)
    for mine, other in zip(*gradients, strict=True):
        bound = 10 * tolerance * float(other.abs().max())
        torch.testing.assert_close(mine, other, rtol=0, atol=bound)


def test_dropout_acts_in_training_and_in_every_layer() -> None:
    stack = make_noisy_stack(dropout=0.5).eval()
    x, _ = make_inputs(5)
    assert torch.equal(run(stack, x), run(make_noisy_stack(), x))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers = [layer for block in stack.blocks for layer in (block.xlstm, block.ffn) if layer]
        for layer in layers:
            layer.train()
            assert (run(stack, x) - run(stack, x)).abs().max() > 0.01
            layer.eval()


PACKED = [(0, 0, 7), (0, 7, 8), (0, 8, 10), (0, 10, 24), (1, 0, 23), (1, 23, 24), (2, 0, 24)]


def packed_starts() -> Tensor:
    is_start = torch.zeros(3, 24, dtype=torch.bool)
    for row, first, _ in PACKED:
        is_start[row, first] = True
    return is_start


# With chunks of 5 positions, documents begin and end within chunks and at their borders, and some
# span several.
@pytest.fixture(params=[5, 24])
def chunk_length(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The most positions in a chunk of the mLSTM."""
    length: int = request.param
    monkeypatch.setattr(mlstm, "chosen_chunk_length", lambda *_: length)
    return length


@pytest.mark.usefixtures("chunk_length")
@pytest.mark.parametrize(("row", "first", "stop"), PACKED)
def test_a_packed_document_equals_the_document_alone(row: int, first: int, stop: int) -> None:
    stack = make_noisy_stack()
    x, weights = make_inputs(24)
    x.requires_grad_()
    wanted = [x, *stack.parameters()]
    packed = run(stack, x, packed_starts())[row, first:stop]
    alone = run(stack, x[row : row + 1, first:stop])[0]
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-5)
    part = weights[row, first:stop]
    from_packed = torch.autograd.grad((packed * part).sum(), wanted)
    from_alone = torch.autograd.grad((alone * part).sum(), wanted)
    for mine, other in zip(from_packed, from_alone, strict=True):
        bound = 1e-4 * float(other.abs().max()) + 1e-7
        torch.testing.assert_close(mine, other, rtol=0, atol=bound)
    assert_only_within(from_packed[0], row, first, stop)


def assert_only_within(gradient: Tensor, row: int, first: int, stop: int) -> None:
    """Not a rounding error beyond the document."""
    outside = gradient.clone()
    outside[row, first:stop] = 0.0
    assert not outside.any()
    assert gradient[row, first:stop].any()


def convolution(x: Tensor, layout: DocumentLayout) -> Tensor:
    return causal_conv(make_noisy_stack().blocks[0].xlstm.conv1d.conv, x, layout, None)[0]


def slstm_layer(x: Tensor, layout: DocumentLayout) -> Tensor:
    return slstm_layer_forward(make_noisy_stack().blocks[0].xlstm, x, layout, None)[0]


def mlstm_layer(x: Tensor, layout: DocumentLayout) -> Tensor:
    return mlstm_layer_forward(make_noisy_stack().blocks[1].xlstm, x, layout, None)[0]


@pytest.mark.usefixtures("chunk_length")
@pytest.mark.parametrize(
    "part", [convolution, slstm_layer, mlstm_layer], ids=["convolution", "slstm", "mlstm"]
)
@pytest.mark.parametrize(("row", "first", "stop"), PACKED)
def test_each_layer_keeps_documents_apart_forward_and_backward(
    part: Callable[[Tensor, DocumentLayout], Tensor], row: int, first: int, stop: int
) -> None:
    x, weights = make_inputs(24)
    x.requires_grad_()
    packed = part(x, lay_out_documents(packed_starts(), x, KERNEL, False))
    here = slice(first, stop)
    alone = part(x[row : row + 1, here], lay_out_documents(None, x[:1, here], KERNEL, False))[0]
    torch.testing.assert_close(packed[row, here], alone, rtol=0, atol=1e-5)
    parts = weights[row, here]
    (mine,) = torch.autograd.grad((packed[row, here] * parts).sum(), x)
    (other,) = torch.autograd.grad((alone * parts).sum(), x)
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-4 * float(other.abs().max()))
    assert_only_within(mine, row, first, stop)


def test_without_document_starts_packed_documents_leak_into_each_other() -> None:
    """Guards the test above: the documents would leak if nothing kept them apart."""
    stack = make_noisy_stack()
    x, _ = make_inputs(24)
    packed = run(stack, x)[0, 10:]
    alone = run(stack, x[:1, 10:])[0]
    assert (packed - alone).abs().amax(-1).min() > 1e-3


@pytest.mark.usefixtures("chunk_length")
@pytest.mark.parametrize("splits", [(0, 24), (0, 1, 2, 9, 11, 24), (0, 10, 24), range(25)])
def test_continuing_from_states_equals_one_pass(splits: tuple[int, ...]) -> None:
    """Splits fall on document starts and within the convolution's reach of them."""
    stack = make_noisy_stack(torch.float64)
    x, _ = make_inputs(24, torch.float64)
    is_start = packed_starts()
    whole = run(stack, x, is_start)
    state = empty_stack_state(stack, 3)
    for first, stop in pairwise(splits):
        part = x[:, first:stop]
        layout = lay_out_documents(is_start[:, first:stop], part, KERNEL, has_state=True)
        y, after = stack_forward(stack, part, layout, state)
        assert after is not None
        state = after
        torch.testing.assert_close(y, whole[:, first:stop], rtol=0, atol=1e-10)


def test_a_state_keeps_no_larger_tensor_in_memory() -> None:
    """A view of what it was computed from would keep a whole prompt's tensors in memory."""
    stack = make_noisy_stack()
    x, _ = make_inputs(24)
    layout = lay_out_documents(None, x, KERNEL, has_state=True)
    _, state = stack_forward(stack, x, layout, empty_stack_state(stack, 3))
    assert state is not None
    for layer in state:
        for part in (layer.conv_BKD, *layer.cell):
            assert part.untyped_storage().nbytes() == part.nbytes


def test_selected_rows_of_a_state_continue_as_those_rows() -> None:
    stack = make_noisy_stack(torch.float64)
    x, _ = make_inputs(10, torch.float64)
    first, second = x[:, :6], x[:, 6:]
    layout = lay_out_documents(None, first, KERNEL, has_state=True)
    _, state = stack_forward(stack, first, layout, empty_stack_state(stack, 3))
    assert state is not None
    order = torch.tensor([2, 0, 0])
    picked = tuple(layer.rows(order) for layer in state)
    layout = lay_out_documents(None, second, KERNEL, has_state=True)
    expected, _ = stack_forward(stack, second, layout, state)
    found, _ = stack_forward(stack, second[order], layout, picked)
    torch.testing.assert_close(found, expected[order], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.003)], ids=["bf16", "fp16"]
)
def test_autocast_stays_close_to_float32(dtype: torch.dtype, tolerance: float) -> None:
    stack = make_noisy_stack()
    x, weights = make_inputs(24)
    is_start = packed_starts()
    wanted = list(stack.parameters())
    expected = run(stack, x, is_start)
    expected_grads = torch.autograd.grad((expected * weights).sum(), wanted)
    with torch.autocast("cpu", dtype=dtype):
        found = run(stack, x, is_start)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < tolerance * expected.abs().max()
    for mine, other in zip(
        torch.autograd.grad((found * weights).sum(), wanted), expected_grads, strict=True
    ):
        assert mine.dtype == torch.float32
        angle = nn.functional.cosine_similarity(mine.flatten(), other.flatten(), dim=0)
        assert angle > 1 - tolerance


def test_a_stack_of_bfloat16_weights_runs_close_to_float32() -> None:
    stack = make_noisy_stack()
    x, _ = make_inputs(24)
    expected = run(stack, x, packed_starts())
    found = run(make_noisy_stack(torch.bfloat16), x.bfloat16(), packed_starts())
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("kernel", [1, 2, 6])
def test_other_convolution_widths_give_the_package_s_result(kernel: int) -> None:
    changes = {"num_blocks": 2, "slstm_at": (1,), "conv_kernel": kernel, "mlstm_factor": 1.0}
    stack = make_stack(settings(**changes))
    x, _ = make_inputs(9)
    if kernel > 1:  # the package's own convolution of width 1 drops every position
        torch.testing.assert_close(
            run(stack, x), plain_stack(stack, **changes)(x), rtol=0, atol=1e-5
        )
    is_start = torch.arange(9).expand(3, 9) == 4
    packed = stack_forward(stack, x, lay_out_documents(is_start, x, kernel, has_state=False), None)[
        0
    ]
    torch.testing.assert_close(packed[:, 4:], run(stack, x[:, 4:]), rtol=0, atol=1e-5)


def test_a_block_s_weights_are_needed_only_within_its_forward() -> None:
    """As under FSDP, whose hooks on a block gather its weights before and free them after."""
    stack = make_noisy_stack()
    x, _ = make_inputs(24)
    kept = {name: parameter.detach().clone() for name, parameter in stack.named_parameters()}

    def gather(block: nn.Module, _: object) -> None:
        for name, parameter in block.named_parameters():
            parameter.copy_(kept[f"{names[block]}.{name}"])

    def free(block: nn.Module, *_: object) -> None:
        for parameter in block.parameters():
            parameter.fill_(torch.nan)

    with torch.no_grad():
        expected = run(stack, x, packed_starts())
        names = {block: f"blocks.{index}" for index, block in enumerate(stack.blocks)}
        for block in names:
            free(block)
            block.register_forward_pre_hook(gather)
            block.register_forward_hook(free)
        assert torch.equal(run(stack, x, packed_starts()), expected)
