"""The weighted sum of students' weights, one tensor at a time.

In: parents of one origin, a weight λ of each, and names. Out: names and tensors: Σ λ θ of what was
trained, in float32 and then in the precision that it is stored in, and what was frozen as it is. At
any time one tensor of each parent is in memory.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stages.train_student.merging.parents import Parent, frozen_names

_STEP = "Copy the student's directory again, or export it anew from an older checkpoint."


def merged_tensors(
    parents: Sequence[Parent], weights: Sequence[float], names: Iterable[str]
) -> Iterator[tuple[str, Tensor]]:
    """The weights ``names`` of the merged student, in that order.

    Raises ValueError where a weight of a parent is no number, where frozen ones differ by a bit,
    and where a sum is beyond the range of its precision.
    """
    frozen = frozen_names(parents[0])
    for name in names:
        tensors = _read(parents, name)
        if name in frozen:
            for parent, tensor in zip(parents[1:], tensors[1:], strict=True):
                if not same_bits(tensors[0], tensor):
                    raise ValueError(
                        f"{parent.directory}: {name}: was frozen in training, but differs from "
                        f"that of {parents[0].directory}. They are not of one origin: merge "
                        "students that have the same teacher and the same parts frozen."
                    )
            yield name, tensors[0]
            continue
        for parent, tensor in zip(parents, tensors, strict=True):
            if not tensor.isfinite().all():
                raise ValueError(
                    f"{parent.directory}: {name}: holds NaN or infinity, so nothing can be merged "
                    f"with it. {_STEP}"
                )
        merged = linear_combination(tensors, weights)
        if not merged.isfinite().all():
            raise ValueError(f"{name}: the sum is too large for {merged.dtype}. {_STEP}")
        yield name, merged


def linear_combination(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ λ θ in float32, rounded once, to the precision of the first of ``tensors``."""
    total = torch.zeros(tensors[0].shape, dtype=torch.float32)
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add_(tensor.float(), alpha=weight)
    return total.to(tensors[0].dtype)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same, bit by bit: 0 is not −0, and NaN is NaN."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(_bytes(one), _bytes(other))


def ordered_names(parent: Parent) -> list[str]:
    """The weights in the order in which they are written: file by file, large numbers first."""
    tensors = parent.tensors
    return sorted(tensors, key=lambda name: (tensors[name].file, -_size(tensors[name].dtype), name))


def _size(dtype: str) -> int:
    """Bits of a number; what is large first keeps every tensor of a file aligned."""
    return int("".join(filter(str.isdigit, dtype)))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def _read(parents: Sequence[Parent], name: str) -> list[Tensor]:
    tensors: list[Tensor] = []
    with ExitStack() as stack:
        for parent in parents:
            path = parent.directory / parent.tensors[name].file
            try:
                file: Any = stack.enter_context(safe_open(path, framework="pt"))
                tensors.append(file.get_tensor(name))
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path}: {name}: cannot be read: {error}. {_STEP}") from error
    return tensors
