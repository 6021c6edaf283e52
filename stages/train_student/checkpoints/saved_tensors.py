"""What a checkpoint holds of a student and its optimizer, by name, and back.

Tensors are whole, however they are spread over processes; all call together. One is gathered at a
time, and only who keeps them holds more than that.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from stages.train_student.distributed.sharding import copy_whole, whole


class _Model(Protocol):
    """A student, or any other module."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


def tensors_of(model: _Model, optimizer: torch.optim.Optimizer, *, keep: bool) -> dict[str, Tensor]:
    """``model.NAME``: trained weights; ``optimizer.NAME.FIELD``: AdamW's moments and steps.

    On the host, and empty where they are not to be kept.
    """
    return whole_tensors(_named_tensors(model, optimizer), keep=keep)


def trained_parameters(model: _Model) -> dict[str, nn.Parameter]:
    """Those that are not frozen, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def trained_sha256(model: _Model) -> str:
    """Hash of what is trained, as it is now. One tensor at a time is whole."""
    trained = trained_parameters(model)
    return weights_sha256((name, whole(trained[name].detach())) for name in sorted(trained))


def weights_sha256(weights: Iterable[tuple[str, Tensor]]) -> str:
    """One hash over names, types, shapes and bytes of ``weights``, in that order."""
    found = hashlib.sha256()
    for name, weight in weights:
        tensor = weight.cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def whole_tensors(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """``tensors``, whole and on the host; all are gathered, and kept if ``keep``."""
    gathered = ((name, whole(tensor.detach())) for name, tensor in tensors.items())
    return {name: tensor.cpu().contiguous() for name, tensor in gathered if keep}


def trained_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The student's part of ``tensors_of``, by the names of its parameters."""
    prefix = "model."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def require_tensors(
    model: _Model, optimizer: torch.optim.Optimizer, found: Mapping[str, Tensor]
) -> None:
    """Raise ValueError unless ``found`` are what ``tensors_of`` gives: names, shapes and dtypes."""
    require_alike(_named_tensors(model, optimizer), found)


def require_alike(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], *, dtypes: bool = True
) -> None:
    """Raise ValueError where names, shapes or, if they matter, ``dtypes`` differ."""
    missing, unknown = expected.keys() - found.keys(), found.keys() - expected.keys()
    for names, problem in ((missing, "missing"), (unknown, "not of this student")):
        if names:
            raise ValueError(f"tensors: {len(names)} {problem}, such as {min(names)!r}.")
    for name, tensor in expected.items():
        own, other = (
            (tuple(tensor.shape), tensor.dtype),
            (tuple(found[name].shape), found[name].dtype),
        )
        if own != other and (dtypes or own[0] != other[0]):
            raise ValueError(f"tensors: {name}: expected {own}, found {other}.")


def restore(model: _Model, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of ``tensors_of``; ``tensors`` are as ``require_tensors`` wants them."""
    for name, target in _named_tensors(model, optimizer).items():
        copy_whole(target, tensors[name])


def restore_weights(
    model: _Model, weights: Mapping[str, Tensor], *, may_keep: Collection[str] = ()
) -> None:
    """Fill all that is trained; those of ``may_keep`` that ``weights`` lack stay as they are.

    Raises ValueError unless there is one of each other name, of the same shape, and no more.
    """
    parameters = {
        name: parameter
        for name, parameter in trained_parameters(model).items()
        if name in weights or name not in may_keep
    }
    require_alike(parameters, weights, dtypes=False)
    for name, parameter in parameters.items():
        copy_whole(parameter, weights[name])


def _named_tensors(model: _Model, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors themselves, as this process has them."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in trained_parameters(model).items():
        tensors[f"model.{name}"] = parameter
        for field, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{name}.{field}"] = value
    return tensors
