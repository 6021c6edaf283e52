"""Copies to and from the GPU, while it computes: what arrives is what was sent."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import cache_format
from stages.cache_teacher.teacher.device_queue import DeviceClock, to_device, to_host
from stages.train_student.data.batch import read_batch
from stages.train_student.data.loader import Loader, row_order
from tests.support.batches import tensors_of
from tests.support.train_configs import tiny_train_config

pytestmark = pytest.mark.gpu
_STEPS = 12


def checksum(tensor: Tensor) -> Tensor:
    """A sum in which every byte has a weight of its own, computed where the tensor is."""
    bytes_N = tensor.contiguous().view(-1).view(torch.uint8).double()
    return (bytes_N * torch.arange(1, len(bytes_N) + 1, device=tensor.device)).sum()


def test_batches_that_are_copied_ahead_arrive_whole(device: torch.device, tiny_cache: Path) -> None:
    """Checksums are queued as soon as a batch is there, behind work that the next copy overlaps."""
    cache = cache_format.open(tiny_cache)
    config = tiny_train_config(batch_size=4, gradient_accumulation_steps=3)
    order = row_order(cache, config, cache.num_rows("train"))
    size = 4096 if device.type == "cuda" else 64
    busy = torch.randn(size, size, device=device)
    found: list[tuple[str, Tensor]] = []
    with Loader(cache, order, device, num_threads=2, with_sketch=True) as loader:
        for step in loader.steps(0, _STEPS):
            for batch in step:
                busy = (busy @ busy).tanh()
                assert batch.input_ids.device == device
                assert batch.is_document_start.device.type == "cpu"
                found += [(name, checksum(tensor)) for name, tensor in tensors_of(batch)]
            del step, batch  # their memory is free for the next copies
    expected = []
    for number in range(_STEPS):
        for rows_B in order.rows_of_step(number).reshape(-1, order.batch_size):
            batch = read_batch(cache, "train", rows_B.tolist(), with_sketch=True)
            expected += [(name, checksum(tensor).item()) for name, tensor in tensors_of(batch)]
    assert [(name, value.item()) for name, value in found] == expected
    assert len({value for _, value in expected}) > 3 * _STEPS


def test_what_is_copied_from_is_pinned(device: torch.device, tiny_cache: Path) -> None:
    batch = read_batch(cache_format.open(tiny_cache), "train", range(4), with_sketch=True)
    if device.type == "cuda":
        batch = batch.pinned()
        assert all(tensor.is_pinned() for _, tensor in tensors_of(batch))
        assert to_host(torch.zeros(3, device=device)).is_pinned()
    assert len(list(tensors_of(batch))) > 5


def test_results_that_are_copied_back_are_whole_once_the_clock_was_waited_for(
    device: torch.device,
) -> None:
    random = np.random.default_rng(0)
    pending = []
    for _ in range(8):
        values = random.normal(size=(257, 1001)).astype(np.float32)
        clock = DeviceClock(device)
        host = to_host(to_device(values, device) * 2)
        clock.stop()
        pending.append((values, host, clock))
    for values, host, clock in pending:
        clock.wait()
        assert np.array_equal(host.numpy(), values * 2)
        assert clock.seconds() >= 0
