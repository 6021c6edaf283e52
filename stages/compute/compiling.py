"""A function of tensors, compiled by PyTorch where that is asked for and possible.

Compiled, a chain of passes over a chunk's logits becomes one: several times faster, the same but
for the last bits of its sums. Sizes stay symbolic, so that it is compiled once.
"""

import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]
Mode = Literal["auto", "on", "off"]


class Compiled:
    """``function``, compiled when it is first called."""

    def __init__(
        self, function: Function, mode: Mode, device: torch.device, *, what: str, setting: str
    ) -> None:
        """``auto`` compiles if there is a compiler, and does without if that fails at first.

        What fails later, or when it runs, is raised: it may have overwritten its arguments. A
        warning says ``what`` is then slow, and names the recipe's ``setting``.
        """
        self._function, self._mode = function, mode
        self._what, self._setting = what, setting
        self._is_compiled = mode != "off"
        self._compiled: Function | None = None
        self._has_run = False
        if mode == "auto" and not has_compiler(device):
            self._warn("no C++ compiler" + (", or no Triton" if device.type == "cuda" else ""))
            self._is_compiled = False

    @property
    def is_compiled(self) -> bool:
        """Whether calls run compiled."""
        return self._is_compiled

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The function's value. The first dimension may be anything."""
        # A size of 0 or 1 would be compiled anew: PyTorch takes those for constants.
        if not self._is_compiled or len(tensors[0]) < 2:
            return self._function(*tensors)
        if self._compiled is None:
            options: dict[str, Any] = {"cpp.simdlen": _vector_bits()}
            self._compiled = torch.compile(
                self._function, fullgraph=True, dynamic=True, options=options
            )
        try:
            found = self._compiled(*tensors)
        except Exception as error:  # compilers fail in many ways
            if self._mode == "on" or self._has_run or not _is_of_compiling(error):
                raise
            self._warn(" ".join(str(error).split("\n")[:2]) or type(error).__name__)
            self._is_compiled = False
            return self._function(*tensors)
        self._has_run = True
        return found

    def _warn(self, reason: str) -> None:
        warnings.warn(
            f"{self._what} without torch.compile, at a fraction of the speed: {reason}. To compile "
            f"it, install g++ (on GPUs also triton); to silence this warning, set "
            f"{self._setting}=off.",
            RuntimeWarning,
            stacklevel=4,
        )


def _vector_bits() -> int:
    """Width of the vectors that PyTorch's compiler would choose for this CPU by itself; 1 for none.

    Said outright it becomes a part of the key that compiled code is found by. Left open it does not
    (PyTorch 2.13): code made for AVX-512 is then taken from the cache on disk, translated for AVX2
    and run, and computes half of every vector without a word. That happens where one cache serves
    unlike machines, or ``ATEN_CPU_CAPABILITY`` has changed.
    """
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    return pick_vec_isa().bit_width() or 1


def _is_of_compiling(error: Exception) -> bool:
    """Whether nothing has run yet: PyTorch wraps whatever fails before in errors of its own."""
    return isinstance(error, torch._dynamo.exc.TorchDynamoException)


def has_compiler(device: torch.device) -> bool:
    """Whether PyTorch's compiler finds what it needs for ``device``."""
    compilers = [os.environ.get("CXX", ""), "g++", "c++", "clang++"]
    has_cpp = any(shutil.which(name) for name in compilers if name)
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None and has_cpp
    return has_cpp
