"""The student's layers, forward and backward: the sLSTM beside the package's, the mLSTM in chunks
beside one chunk (the parallel form), and whole blocks.

In: sizes. Out: figures.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.alternating import median_seconds, peak_allocated_bytes
from benchmarks.progress import Done, quiet
from stages.train_student.modeling.distil_xlstm.package_stack import (
    StackSettings,
    make_package_stack,
    make_stack,
)
from stages.train_student.modeling.distil_xlstm.stack import slstm_layer_forward, stack_forward
from stages.train_student.modeling.layers.document_masks import lay_out_documents
from stages.train_student.modeling.layers.mlstm import mlstm

_CONV_KERNEL = 4
_HEADS = 16


def stack_settings(width: int, num_blocks: int, slstm_at: tuple[int, ...]) -> StackSettings:
    """The paper's settings at another width or depth."""
    return StackSettings(
        hidden_size=width,
        num_blocks=num_blocks,
        slstm_at=slstm_at,
        num_heads=_HEADS,
        conv_kernel=_CONV_KERNEL,
        qkv_block_size=32,
        feedforward_factor=1.7,
        mlstm_factor=2.0,
        dropout=0.0,
    )


def slstm_beside_vanilla(
    width: int, num_positions: int, batch: int, repeats: int
) -> dict[str, float]:
    """One sLSTM layer, the same weights in ours and in the package's."""
    stack: Any = make_package_stack(stack_settings(width, 1, (0,)))
    layer = stack.blocks[0].xlstm
    parameters = list(layer.parameters())
    x_BTD, weights_BTD = torch.randn(2, batch, num_positions, width)
    layout = lay_out_documents(None, x_BTD, _CONV_KERNEL, has_state=False)

    def ours() -> None:
        y_BTD, _ = slstm_layer_forward(layer, x_BTD, layout, None)
        torch.autograd.grad((y_BTD * weights_BTD).sum(), parameters)

    def vanilla() -> None:
        torch.autograd.grad((layer(x_BTD) * weights_BTD).sum(), parameters)

    median = median_seconds({"ours": ours, "vanilla": vanilla}, repeats)
    peak = {"ours": peak_allocated_bytes(ours), "vanilla": peak_allocated_bytes(vanilla)}
    return {
        "slstm_speedup_over_vanilla": round(median["vanilla"] / median["ours"], 2),
        "slstm_peak_bytes_ratio": round(peak["ours"] / peak["vanilla"], 4),
        "slstm_tokens_per_s": round(batch * num_positions / median["ours"]),
        "vanilla_slstm_tokens_per_s": round(batch * num_positions / median["vanilla"]),
        "slstm_peak_bytes": peak["ours"],
        "vanilla_slstm_peak_bytes": peak["vanilla"],
    }


def mlstm_beside_one_chunk(
    head_width: int, lengths: Iterable[int], repeats: int, done: Done = quiet
) -> dict[str, dict[str, float]]:
    """The cell in chunks as they are chosen, and in one chunk, by length of the sequence."""
    found: dict[str, dict[str, float]] = {"speedup": {}, "peak_bytes_ratio": {}}
    for length in lengths:
        # Laid out as projections give them: heads side by side.
        q, k, v, weights = torch.randn(4, 1, length, _HEADS, head_width).transpose(2, 3)
        gates = torch.randn(2, 1, _HEADS, length)
        inputs = [part.requires_grad_() for part in (q, k, v, gates[0], gates[1] + 3.0)]
        chosen, one_chunk = (_mlstm_pass(inputs, weights, at_most) for at_most in (None, length))
        median = median_seconds({"chosen": chosen, "one_chunk": one_chunk}, repeats)
        ratio = peak_allocated_bytes(chosen) / peak_allocated_bytes(one_chunk)
        found["speedup"][str(length)] = round(median["one_chunk"] / median["chosen"], 2)
        found["peak_bytes_ratio"][str(length)] = round(ratio, 3)
        done(f"mLSTM, {length} positions")
    return found


def _mlstm_pass(
    inputs: list[Tensor], weights: Tensor, chunk_length: int | None
) -> Callable[[], None]:
    q, k, v, i, f = inputs
    like_BTD = torch.empty(1, q.shape[2], 1)
    layout = lay_out_documents(None, like_BTD, _CONV_KERNEL, has_state=False)

    def run() -> None:
        hidden, _ = mlstm((q, k, v), (i, f), layout, None, chunk_length)
        torch.autograd.grad((hidden * weights).sum(), inputs)

    return run


def blocks_tokens_per_second(
    width: int, num_positions: int, batch: int, repeats: int
) -> dict[str, float]:
    """One block of each kind, and the paper's stack of six."""
    shapes: dict[str, tuple[int, tuple[int, ...]]] = {
        "slstm_block": (1, (0,)),
        "mlstm_block": (1, ()),
        "stack": (6, (0, 2, 4)),
    }
    x_BTD, weights_BTD = torch.randn(2, batch, num_positions, width)
    stacks = {name: make_stack(stack_settings(width, *shape)) for name, shape in shapes.items()}
    passes = {name: _stack_pass(stack, x_BTD, weights_BTD) for name, stack in stacks.items()}
    median = median_seconds(passes, repeats)
    return {name: round(batch * num_positions / median[name]) for name in shapes}


def _stack_pass(stack: nn.Module, x_BTD: Tensor, weights_BTD: Tensor) -> Callable[[], None]:
    parameters = list(stack.parameters())
    half = torch.arange(x_BTD.shape[1]).expand(x_BTD.shape[:2]) == x_BTD.shape[1] // 2

    def run() -> None:
        layout = lay_out_documents(half, x_BTD, _CONV_KERNEL, has_state=False)
        y_BTD, _ = stack_forward(stack, x_BTD, layout, None)
        torch.autograd.grad((y_BTD * weights_BTD).sum(), parameters)

    return run
