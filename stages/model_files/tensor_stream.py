"""A safetensors file written tensor by tensor, so that one of them is in memory at a time.

In: names with dtypes and shapes, then the tensors in that order. Out: the file, as the package's
own ``save_file`` lays it out: the size of the header in 8 bytes, the header as JSON padded with
spaces to a multiple of 8, and the numbers, little-endian, one tensor after another.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor

_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}


def write_tensors(
    sink: BinaryIO,
    layout: Mapping[str, tuple[str, tuple[int, ...]]],
    tensors: Iterable[tuple[str, Tensor]],
) -> None:
    """Write ``tensors``, named and ordered as ``layout``, which has dtype and shape of each."""
    sink.write(_header(layout))
    expected = iter(layout.items())
    for name, tensor in tensors:
        planned, (dtype, shape) = next(expected)
        assert (name, tensor.dtype, tuple(tensor.shape)) == (planned, _DTYPES[dtype], shape)
        sink.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    assert next(expected, None) is None, "every tensor of the layout was given"


def _header(layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in layout.items():
        start, end = end, end + _BYTES[dtype] * math.prod(shape)
        fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(fields, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
