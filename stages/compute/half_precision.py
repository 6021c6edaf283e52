"""Whether a device multiplies matrices fast in half precision.

A GPU does. A CPU does with instructions of its own; one without them converts every number, and is
ten times and more slower than in float32.
"""

import os
import platform

import torch

# oneDNN, which multiplies, takes any AVX-512 for bfloat16, and converts where it may not use more.
_CONVERTING_ISA = {"AVX512_CORE", "AVX512_CORE_VNNI"}
_X86 = {"x86_64", "amd64"}


def multiplies_fast(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether ``device`` is no slower in ``dtype`` than in float32.

    Of a CPU, what counts is what may run: ``ONEDNN_MAX_CPU_ISA`` can forbid instructions.
    """
    if device.type != "cpu" or dtype == torch.float32:
        return True
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and _has_bfloat16()


def _has_bfloat16() -> bool:
    """Whether an x86 processor, if this is one, has products of bfloat16, and may use them."""
    if platform.machine().lower() not in _X86:
        return True  # oneDNN has looked
    most = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    return torch.cpu._is_avx512_bf16_supported() and most.upper() not in _CONVERTING_ISA


def slow_sentence(setting: str, dtype: str, instead: str) -> str:
    """What a run in ``dtype`` on such a CPU is told; ``setting`` names the recipe's key."""
    return (
        f"{setting} is {dtype}, for which this CPU has no instructions: in measurements it was 7 "
        f"to 15 times slower than {instead}. Set it to {instead}, or use a GPU."
    )


def chosen_sentence(setting: str, dtype: str) -> str:
    """What is said where ``auto`` stands for float32."""
    return f"{setting} is {dtype}: this CPU has no instructions for bfloat16"
