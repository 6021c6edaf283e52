"""Speed, MFU and memory of a run."""

import pytest
import torch

from stages.train_student.tracking.throughput import Throughput, peak_bytes

CPU = torch.device("cpu")


def test_throughput_is_tokens_over_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    throughput = Throughput(1e9, CPU, "fp32", 1)
    now = 101.0
    throughput.loaded()
    now = 104.0
    found = throughput.figures(2048)
    assert found["speed/tokens_per_second"] == 512.0
    assert found["speed/loader_wait_share"] == 0.25
    assert found["speed/peak_bytes"] > 2**20
    assert "speed/mfu" not in found  # nobody knows what a processor could do
    now = 200.0  # a validation
    throughput.restart()
    now = 201.0
    throughput.loaded()
    now = 202.0
    assert throughput.figures(10)["speed/tokens_per_second"] == 5.0


def test_model_flops_utilization_is_over_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: 7)
    throughput = Throughput(989e6, torch.device("cuda"), "bf16", 2)
    now = 1.0
    throughput.loaded()
    now = 2.0
    found = throughput.figures(1_000_000)
    assert found["speed/mfu"] == pytest.approx(0.25)
    assert found["speed/peak_bytes"] == 7


def test_peak_memory_grows_with_allocated_tensors() -> None:
    before = peak_bytes(CPU)
    held = torch.ones(2**26)
    assert peak_bytes(CPU) >= before
    assert peak_bytes(CPU) > held.nbytes
