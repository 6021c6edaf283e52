"""Makes the package's ``xLSTMBlockStack`` from settings, after checking that they fit.

In: widths and block settings. Out: a stack with the package's own initialisation, on the default
device.

Only the package's "vanilla" cells are used, so neither a CUDA toolkit nor a compiler is needed.
"""

import contextlib
import importlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils import cpp_extension

from stages.train_student.modeling.distil_xlstm.stack import IsolatedBlock


@dataclass(frozen=True, kw_only=True)
class StackSettings:
    """Block settings, as in ``DistilXLSTMSettings``, with the width. Checked when made."""

    hidden_size: int
    num_blocks: int
    slstm_at: tuple[int, ...]
    num_heads: int
    conv_kernel: int
    qkv_block_size: int
    feedforward_factor: float
    mlstm_factor: float
    dropout: float

    def __post_init__(self) -> None:
        width, heads, has_slstm = self.hidden_size, self.num_heads, bool(self.slstm_at)
        inner = self.inner_size
        has_mlstm = len(self.slstm_at) < self.num_blocks
        _require(
            not has_slstm or width % heads == 0,
            f"num_heads = {heads} must divide the model's width, {width}",
        )
        _require(
            not has_slstm or width // heads >= 2,
            f"num_heads = {heads} leaves an sLSTM head of the width {width} less than 2 wide",
        )
        inner_is = f"the inner width, {inner} (mlstm_factor × {width}, rounded up to 64s)"
        _require(
            not has_mlstm or inner % heads == 0,
            f"num_heads = {heads} must divide {inner_is}",
        )
        _require(
            not has_mlstm or inner % self.qkv_block_size == 0,
            f"qkv_block_size = {self.qkv_block_size} must divide {inner_is}",
        )

    @property
    def inner_size(self) -> int:
        """Inner width of an mLSTM block: the package rounds it up to a multiple of 64."""
        return 64 * math.ceil(self.mlstm_factor * self.hidden_size / 64)


def make_stack(settings: StackSettings) -> nn.Module:
    """The package's stack with ``IsolatedBlock`` in it, to be run by ``stack_forward``.

    Parameters are named as in the plain stack, and move to and from it by ``load_state_dict``.
    """
    stack: Any = make_package_stack(settings)
    stack.blocks = nn.ModuleList(IsolatedBlock(block) for block in stack.blocks)
    return stack  # type: ignore[no-any-return]


def make_package_stack(settings: StackSettings) -> nn.Module:
    """The package's stack as it comes, with these settings."""
    # By name: transformers imports what it finds after ``import`` in a model directory's code by
    # itself, where no one has made it do without a CUDA toolkit.
    with _without_cuda_toolkit():
        xlstm: Any = importlib.import_module("xlstm")

    config = xlstm.xLSTMBlockStackConfig(
        mlstm_block=xlstm.mLSTMBlockConfig(
            mlstm=xlstm.mLSTMLayerConfig(
                conv1d_kernel_size=settings.conv_kernel,
                qkv_proj_blocksize=settings.qkv_block_size,
                num_heads=settings.num_heads,
                proj_factor=settings.mlstm_factor,
            )
        ),
        slstm_block=xlstm.sLSTMBlockConfig(
            slstm=xlstm.sLSTMLayerConfig(
                backend="vanilla",
                num_heads=settings.num_heads,
                conv1d_kernel_size=settings.conv_kernel,
            ),
            feedforward=xlstm.FeedForwardConfig(
                proj_factor=settings.feedforward_factor, act_fn="gelu", dropout=settings.dropout
            ),
        ),
        num_blocks=settings.num_blocks,
        embedding_dim=settings.hidden_size,
        slstm_at=list(settings.slstm_at),
        dropout=settings.dropout,
        context_length=1,
    )
    stack: Any = xlstm.xLSTMBlockStack(config)
    for module in stack.modules():
        # This buffer is not saved, so a model loaded from disk would hold garbage in it. Without it
        # the package makes the mask as it needs it.
        if "causal_mask" in module._buffers:
            module._buffers["causal_mask"] = None
    return stack  # type: ignore[no-any-return]


@contextlib.contextmanager
def _without_cuda_toolkit() -> Iterator[None]:
    """Lets the import of ``xlstm`` pass where a GPU is visible but no CUDA toolkit is installed.

    The package asks PyTorch for the toolkit's include path while it is imported, for a kernel that
    is compiled at run time and never used here; PyTorch raises OSError if it knows of no toolkit.
    """
    if cpp_extension.CUDA_HOME is not None:
        yield
        return
    cuda_lib = os.environ.get("CUDA_LIB")  # the package derives it from the toolkit's path
    cpp_extension.CUDA_HOME = "no-cuda-toolkit"
    try:
        yield
    finally:
        cpp_extension.CUDA_HOME = None
        if cuda_lib is None:
            os.environ.pop("CUDA_LIB", None)
        else:
            os.environ["CUDA_LIB"] = cuda_lib


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(f"student: {message}. Change it in [train_student.student] of the recipe.")
