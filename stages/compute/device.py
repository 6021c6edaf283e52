"""Which device a stage runs on."""

from contextlib import AbstractContextManager, nullcontext

import torch


def choose_device(name: str) -> torch.device:
    """``auto`` is the first GPU, or else the processor. Raises ValueError if there is none such.

    Of a GPU, cuDNN's attention is turned off for this process: its gradient under a mask may be NaN
    (pytorch/pytorch#196678), and it makes a plan for every length, so for every generated token.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: {name!r} is not auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ValueError(f"device: {name!r} is not there; PyTorch sees {found} GPUs")
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
    return device


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """A block in which ``device`` is this thread's GPU, if it is one.

    Every thread begins with the first GPU, and events, streams and compiled kernels go by that.
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
