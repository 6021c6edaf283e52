"""Tensors that FSDP has spread over the processes, as whole ones and back.
All processes call these together.
"""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """All of ``tensor``, on every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The whole ``tensor`` on the device of ``like``, spread as it is if the shapes are equal."""
    tensor = tensor.to(like.device)
    if isinstance(like, DTensor) and tensor.shape == like.shape:
        return distribute_tensor(tensor, like.device_mesh, like.placements)
    return tensor


@torch.no_grad()
def copy_whole(target: Tensor, source: Tensor) -> None:
    """Fill ``target`` with the whole ``source``."""
    target.copy_(placed_like(source, target))
