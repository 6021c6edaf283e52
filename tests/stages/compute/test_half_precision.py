"""Which devices are fast in half precision."""

import pytest
import torch

from stages.compute.half_precision import multiplies_fast
from tests.support.half_precision_cpus import PLACE, set_cpu

CPU = torch.device("cpu")


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("fp16", [False, True])
def test_a_cpu_is_fast_in_the_dtypes_it_has_instructions_for(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, fp16: bool
) -> None:
    set_cpu(monkeypatch, bf16=bf16, fp16=fp16)
    assert multiplies_fast(CPU, torch.bfloat16) == bf16
    assert multiplies_fast(CPU, torch.float16) == fp16
    assert multiplies_fast(CPU, torch.float32)


def test_an_x86_cpu_that_only_converts_bfloat16_is_not_fast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """oneDNN takes any AVX-512 for bfloat16: four times as slow as float32 without products."""
    set_cpu(monkeypatch, bf16=True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert not multiplies_fast(CPU, torch.bfloat16)
    monkeypatch.setattr(f"{PLACE}.platform.machine", lambda: "aarch64")  # there it looks itself
    assert multiplies_fast(CPU, torch.bfloat16)


@pytest.mark.parametrize(
    ("most", "is_fast"), [("avx512_core", False), ("AVX512_CORE_BF16", True), ("ALL", True)]
)
def test_instructions_forbidden_by_onednn_settings_do_not_count(
    monkeypatch: pytest.MonkeyPatch, most: str, is_fast: bool
) -> None:
    set_cpu(monkeypatch, bf16=True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
    assert multiplies_fast(CPU, torch.bfloat16) == is_fast


def test_without_onednn_half_precision_is_not_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    set_cpu(monkeypatch, bf16=True, fp16=True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not multiplies_fast(CPU, torch.bfloat16)
    assert not multiplies_fast(CPU, torch.float16)


def test_gpus_are_fast_in_half_precision() -> None:
    assert multiplies_fast(torch.device("cuda"), torch.float16)


def test_the_installed_pytorch_answers_for_both_half_precisions() -> None:
    assert multiplies_fast(CPU, torch.bfloat16) in (True, False)
    assert multiplies_fast(CPU, torch.float16) in (True, False)
