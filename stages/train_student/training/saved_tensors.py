"""What a checkpoint holds of a student and its optimizer, by name, and back.

Called by ``run``. Tensors are whole, however they are spread over processes; all call together.
One is gathered at a time, and only who keeps them holds more than that.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stages.train_student.training.sharding import copy_whole, placed_like, whole


def tensors_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, keep: bool
) -> dict[str, Tensor]:
    """``model.NAME``: trained weights; ``optimizer.NAME.FIELD``: AdamW's moments and steps.

    On the host, and empty where they are not to be kept.
    """
    trained = trained_parameters(model)
    names = {id(parameter): name for name, parameter in trained.items()}
    tensors = {f"model.{name}": parameter.detach() for name, parameter in trained.items()}
    for parameter, state in optimizer.state.items():
        for field, value in state.items():
            tensors[f"optimizer.{names[id(parameter)]}.{field}"] = value
    return whole_tensors(tensors, keep=keep)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Those that are not frozen, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def whole_tensors(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """``tensors``, whole and on the host; all are gathered, and kept if ``keep``."""
    gathered = ((name, whole(tensor.detach())) for name, tensor in tensors.items())
    return {name: tensor.cpu().contiguous() for name, tensor in gathered if keep}


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of ``tensors_of``."""
    parameters = dict(model.named_parameters())
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        if kind == "model":
            copy_whole(parameters[name], tensor)
        elif kind == "optimizer":
            name, _, field = name.rpartition(".")
            parameter = parameters[name]
            optimizer.state[parameter][field] = placed_like(tensor, parameter)
