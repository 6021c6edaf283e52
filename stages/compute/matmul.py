"""Matrix products with factors in one precision, and sums and results in float32.

In: matrices. Out: float32. GPUs have such products for half precision. On a CPU, PyTorch has them
for factors stored in float32: for bfloat16 it rounds these inside the product, if the CPU has
instructions for it; for float16 they are rounded beforehand.
"""

from typing import Any

import torch
from torch import Tensor


def factor(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """``matrix`` as a factor in ``dtype``, the way its device stores one."""
    if matrix.is_cuda or dtype == torch.float32:
        return matrix.to(dtype)
    return (matrix.half() if dtype == torch.float16 else matrix).float()


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """left @ right in float32, the left rounded to the precision of the right.

    ``out`` is written where factors are stored in float32, and ignored elsewhere.
    """
    left = left.to(right.dtype)
    if right.is_cuda and right.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left.float(), right.float(), out=out)


def bfloat16_product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """``product``, its factors rounded to bfloat16 if the processor has instructions for these.

    Three times as fast with AMX.
    """
    settings: Any = torch.backends.mkldnn
    before = settings.matmul.fp32_precision
    settings.matmul.fp32_precision = "bf16"
    try:
        return product(left, right, out)
    finally:
        settings.matmul.fp32_precision = before
