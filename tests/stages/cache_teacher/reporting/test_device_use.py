"""Operations of a model, against PyTorch's own counting, and what share of a device they are."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stages.cache_teacher.config import ALL_UNITS
from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.reporting.device_use import DeviceUse, model_operations
from stages.cache_teacher.reporting.progress import CacheProgress, Progress
from stages.compute.peak_flops import peak_operations
from tests.support.tiny import save_tiny_teacher


def one_row(num_tokens: int, starts: list[int]) -> PackedUnit:
    return PackedUnit(
        token_ids_RT=np.zeros((1, num_tokens + 1), np.int32),
        document_starts=[np.array(starts, np.int32)],
        num_dropped_tokens=0,
    )


@pytest.mark.parametrize("tie", [True, False])
def test_counted_weight_operations_equal_those_of_pytorch(tmp_path: Path, tie: bool) -> None:
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM

    teacher = save_tiny_teacher(tmp_path, tie=tie)
    operations = model_operations(teacher)
    assert operations is not None
    model = AutoModelForCausalLM.from_pretrained(teacher, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(1, 32, dtype=torch.long), use_cache=False)
    counts = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    products = counts["aten.mm"] + counts.get("aten.addmm", 0)
    assert 32 * operations.per_token == pytest.approx(products, rel=0.02)  # norms and biases
    # Eager attention multiplies all pairs, of which those to come are masked.
    assert 32 * 32 * operations.per_pair == counts["aten.bmm"]


def test_attention_pairs_are_counted_within_documents(tmp_path: Path) -> None:
    operations = model_operations(save_tiny_teacher(tmp_path))
    assert operations is not None
    weights = 8 * operations.per_token
    assert operations.of(one_row(8, [])) - weights == pytest.approx(36 * operations.per_pair)
    assert operations.of(one_row(8, [3])) - weights == pytest.approx((6 + 15) * operations.per_pair)
    # The last index belongs to a label alone.
    assert operations.of(one_row(8, [3, 8])) == operations.of(one_row(8, [3]))


def test_mixtures_of_experts_are_not_counted(tmp_path: Path) -> None:
    teacher = save_tiny_teacher(tmp_path, num_experts=4)
    assert model_operations(teacher) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peak_operations_are_known_by_gpu_name(name: str, expected: float | None) -> None:
    assert peak_operations(name, "bfloat16") == expected
    assert peak_operations(name, "float32") is None


def test_progress_reports_device_wait_and_arithmetic_shares() -> None:
    now = 0.0
    reports: list[CacheProgress] = []
    progress = Progress(1000, ALL_UNITS, reports.append, clock=lambda: now)
    progress.know_device(100.0, num_devices=2)
    progress.show("loading teacher")
    assert reports[-1].device_wait_share is None
    progress.begin_unit(0, "here")
    now = 10.0
    progress.used(DeviceUse(busy_seconds=15.0, num_operations=500.0))
    progress.count_row(0, 100)
    last = reports[-1]
    assert last.seconds == 10.0
    assert last.device_wait_share == pytest.approx(0.25)  # two devices, 15 of 20 seconds
    assert last.mfu == pytest.approx(0.25)
    assert last.tokens_done == 100
