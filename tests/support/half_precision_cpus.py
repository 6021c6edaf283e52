"""CPUs with and without instructions for half precision, whatever the tests run on."""

import pytest
import torch

PLACE = "stages.compute.half_precision"


def set_cpu(patch: pytest.MonkeyPatch, *, bf16: bool, fp16: bool = False) -> None:
    """Make this process's CPU one with such instructions, or one with AVX2 alone."""
    patch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    patch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    patch.setattr(f"{PLACE}.platform.machine", lambda: "x86_64")
    patch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    patch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bf16)
    patch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: fp16)
    patch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
