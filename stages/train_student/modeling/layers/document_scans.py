"""Running sums and maxima that restart with every document of a packed row.

In: numbers of positions, and where each position's document begins and ends. Out: the same for
every document as if it were alone, to the last bit, and likewise the gradient: only numbers of one
document are ever added or compared. (A difference of two cumulative sums over the row would leave a
document the rounding errors of those before it.)

By doubling, log₂ T steps: after step j a position has what the last 2ʲ positions up to it give
(Hillis and Steele, "Data parallel algorithms", 1986).

Shapes: B batch, N heads, T positions.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stages.train_student.modeling.layers.document_masks import Documents


def document_sums(x_BNT: Tensor, documents: Documents | None) -> Tensor:
    """The sum of a position's document up to and with the position; differentiable once."""
    sums: Tensor = _DocumentSums.apply(x_BNT, documents)  # type: ignore[no-untyped-call]
    return sums


@torch.no_grad()
def document_maxima(x_BNT: Tensor, documents: Documents | None) -> Tensor:
    """The largest number of a position's document up to and with the position, a constant."""
    if documents is None:
        return x_BNT.cummax(-1).values
    for distance, is_beyond in _doublings(_num_before(documents)):
        earlier = x_BNT[..., :-distance].masked_fill(is_beyond, -math.inf)
        later = torch.maximum(x_BNT[..., distance:], earlier)
        x_BNT = torch.cat([x_BNT[..., :distance], later], -1)
    return x_BNT


class _DocumentSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BNT: Tensor, documents: Documents | None) -> Tensor:
        ctx.documents = documents
        if documents is None:
            return x_BNT.cumsum(-1)
        return _sums(x_BNT, _num_before(documents))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BNT: Tensor) -> tuple[Tensor, None]:
        documents: Documents | None = ctx.documents
        grad_BNT = grad_BNT.flip(-1)
        if documents is None:
            return grad_BNT.cumsum(-1).flip(-1), None
        position_T = torch.arange(grad_BNT.shape[-1], device=grad_BNT.device)
        return _sums(grad_BNT, (documents.last_BT - position_T).flip(-1)).flip(-1), None


def _sums(x_BNT: Tensor, num_before_BT: Tensor) -> Tensor:
    for distance, is_beyond in _doublings(num_before_BT):
        earlier = x_BNT[..., :-distance].masked_fill(is_beyond, 0.0)
        x_BNT = torch.cat([x_BNT[..., :distance], x_BNT[..., distance:] + earlier], -1)
    return x_BNT


def _num_before(documents: Documents) -> Tensor:
    """How many positions of its document come before a position."""
    first_BT = documents.first_BT
    return torch.arange(first_BT.shape[1], device=first_BT.device) - first_BT


def _doublings(num_before_BT: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Distances 1, 2, 4, …; from which positions they reach over the beginning of the document."""
    distance = 1
    while distance < num_before_BT.shape[1]:
        yield distance, num_before_BT[:, None, distance:] < distance
        distance *= 2
