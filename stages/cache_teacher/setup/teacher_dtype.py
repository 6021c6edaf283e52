"""The precision that the teacher runs in, where the recipe leaves it open.

A cache that was begun keeps to its own, whatever machine goes on with it.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

import torch

from cache_format.storage.open import storage_at
from cache_format.writer import begun_spec
from stages.cache_teacher.config import CacheTeacherConfig
from stages.compute.half_precision import chosen_sentence, multiplies_fast, slow_sentence

_SETTING = "cache_teacher.teacher_dtype"
Dtype = Literal["bfloat16", "float16", "float32"]


def with_teacher_dtype(
    config: CacheTeacherConfig,
    out: Path | str,
    device: torch.device | None,
    say: Callable[[str], None],
) -> CacheTeacherConfig:
    """``config`` with a dtype in place of ``auto``: the one of the cache at ``out``, if there is
    one, or else the one for ``device``.

    ``device`` is none where others run the teacher, which are taken for GPUs. ``say`` is told where
    a CPU has no instructions for half precision. Raises ForeignDirectoryError if ``out`` holds
    something else.
    """
    dtype = config.teacher_dtype
    if dtype == "auto":
        dtype = _begun_dtype(out) or _dtype_for(device)
        if dtype == "float32" and _dtype_for(device) == "float32":
            say(chosen_sentence(_SETTING, dtype))
    if device is not None and not multiplies_fast(device, getattr(torch, dtype)):
        say(slow_sentence(_SETTING, dtype, "float32"))
    return replace(config, teacher_dtype=dtype)


def _begun_dtype(out: Path | str) -> Dtype | None:
    begun = begun_spec(storage_at(out))
    return None if begun is None else cast(Dtype, begun.teacher.dtype)


def _dtype_for(device: torch.device | None) -> Dtype:
    if device is None or multiplies_fast(device, torch.bfloat16):
        return "bfloat16"
    return "float32"
