"""What tests that run on a GPU share: the device, tensors moved to it, and what waits for it."""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from tests.support.host_waits import NoDeviceSync

WHERE = "XLSTM_DISTILL_GPU_TESTS"
"""The environment's variable that says where tests marked ``gpu`` run: ``cuda``, ``cpu`` (as far as
a processor goes, to try the tests themselves), or nowhere."""

_Moved = TypeVar("_Moved")


def asked_device() -> str:
    """``cuda``, ``cpu``, or nothing, as the environment says."""
    return os.environ.get(WHERE, "")


def obstacle() -> str:
    """Why tests marked ``gpu`` do not run here; empty if they do."""
    if asked_device() == "cpu" or (asked_device() == "cuda" and torch.cuda.is_available()):
        return ""
    if asked_device() == "cuda":
        return "PyTorch sees no GPU"
    return "needs a GPU, and is run by `make gpu`"


def moved(value: _Moved, device: torch.device) -> _Moved:
    """``value``, all tensors of which are on ``device``; it may be a dataclass of such."""
    found: Any = value
    if isinstance(value, torch.Tensor):
        found = value.to(device)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {f.name: moved(getattr(value, f.name), device) for f in dataclasses.fields(value)}
        found = dataclasses.replace(value, **changes)
    return found  # type: ignore[no-any-return]


@contextmanager
def no_host_waits(device: torch.device) -> Iterator[None]:
    """Fails where the host waits for ``device``: by PyTorch's own account of a GPU."""
    if device.type != "cuda":
        with NoDeviceSync():
            yield
        return
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
