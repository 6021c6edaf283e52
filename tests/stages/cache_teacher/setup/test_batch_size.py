"""The number of rows is found by trying: memory that runs out ends the trial, not the run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.cache_teacher.setup import batch_size
from stages.cache_teacher.setup.batch_size import full_rows, rows_per_forward, rows_that_fit
from tests.support.sample_cache import sample_shared, sample_spec

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Device:
    """Has memory for some rows, and remembers what was tried."""

    def __init__(self, capacity: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self.capacity, self.error = capacity, error
        self.tried: list[int] = []
        self.num_freed = 0

    def try_rows(self, num_rows: int) -> None:
        self.tried.append(num_rows)
        if num_rows > self.capacity:
            is_memory = self.error is torch.OutOfMemoryError
            raise self.error("CUDA out of memory" if is_memory else "an illegal memory access")

    def free(self) -> None:
        self.num_freed += 1


@pytest.mark.parametrize(
    ("capacity", "most", "expected", "tried"),
    [
        (0, 64, 0, [1]),
        (1, 64, 1, [1, 2]),
        (5, 64, 4, [1, 2, 4, 8]),
        (8, 64, 8, [1, 2, 4, 8, 16]),
        (10**6, 64, 64, [1, 2, 4, 8, 16, 32, 64]),
        (10**6, 63, 32, [1, 2, 4, 8, 16, 32]),
        (10**6, 0, 1, [1]),  # rows longer than the cap
    ],
)
def test_the_batch_size_is_the_largest_power_of_two_that_fits(
    capacity: int, most: int, expected: int, tried: list[int]
) -> None:
    device = Device(capacity)
    assert rows_that_fit(device.try_rows, most, device.free) == expected
    assert device.tried == tried
    assert device.num_freed >= len(tried)


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    ],
)
def test_cublas_and_driver_errors_count_as_out_of_memory(message: str) -> None:
    def try_rows(num_rows: int) -> None:
        if num_rows > 2:
            raise RuntimeError(message)

    assert rows_that_fit(try_rows, 64, lambda: None) == 2


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_other_errors_while_trying_a_batch_size_propagate(error: type[Exception]) -> None:
    device = Device(2, error)
    with pytest.raises(error):
        rows_that_fit(device.try_rows, 64, device.free)


def test_trial_rows_are_scored_at_every_position() -> None:
    batch = full_rows(3, 16, vocab_size=20)
    assert batch.token_ids_RT.shape == (3, 17)
    assert batch.token_ids_RT.max() == 19
    assert batch.scored_RT().all()


def test_a_given_batch_size_is_not_tried_out() -> None:
    nothing: Any = None
    assert rows_per_forward(7, nothing, nothing, GPU, 2) == 7


@pytest.mark.parametrize(("length", "expected"), [(64, 32), (512, 4), (2048, 1), (4096, 1)])
def test_a_cpu_batch_has_a_fixed_number_of_positions(length: int, expected: int) -> None:
    step: Any = None
    spec = sample_spec(sequence_length=length)
    assert rows_per_forward(None, step, spec, CPU, 2) == expected


class Step:
    """Launches batches on a device that has memory for so many rows at once."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.launched = capacity, 0
        self.sizes: list[int] = []

    def launch(self, batch: Any, unit: int, first_row: int) -> np.ndarray:
        self.launched += len(batch.token_ids_RT)
        self.sizes.append(len(batch.token_ids_RT))
        if self.launched > self.capacity:
            self.launched = 0
            raise torch.OutOfMemoryError("CUDA out of memory")
        return np.empty(0)

    def wait(self, device: torch.device) -> None:
        self.launched = 0


@pytest.fixture
def as_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Takes a ``Step`` for a GPU."""

    @contextmanager
    def held_back(device: torch.device) -> Iterator[None]:
        yield

    def take(step: Step) -> Any:
        monkeypatch.setattr(torch.cuda, "synchronize", step.wait)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(batch_size, "_memory_held_back", held_back)
        return step

    return take


def test_a_gpu_is_tried_with_as_many_batches_as_will_be_in_flight(as_gpu: Any) -> None:
    spec = sample_spec(sequence_length=512)
    step = Step(capacity=40)
    assert rows_per_forward(None, as_gpu(step), spec, GPU, 2) == 16
    assert step.sizes == [1, 1, 2, 2, 4, 4, 8, 8, 16, 16, 32, 32]
    assert rows_per_forward(None, as_gpu(Step(10**6)), spec, GPU, 2) == 64


def test_if_not_even_one_row_fits_the_settings_to_lower_are_named(as_gpu: Any) -> None:
    spec = sample_spec(sequence_length=512)
    with pytest.raises(ValueError, match=r"not even one row of 512 positions.*head_chunk"):
        rows_per_forward(None, as_gpu(Step(0)), spec, GPU, 2)


def test_a_tenth_of_the_memory_is_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    memory = {"free": 900, "all": 1000}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: tuple(memory.values()))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: held.append(-1))
    monkeypatch.setattr(torch, "empty", lambda num_bytes, **_: held.append(num_bytes))
    with batch_size._memory_held_back(GPU):
        assert held == [100]
    memory["free"] = 60  # as much as can be
    with batch_size._memory_held_back(GPU):
        pass
    assert held == [100, -1, 30, -1]


def test_a_real_step_runs_with_the_chosen_batch_size(tiny_teacher: Path) -> None:
    """What is tried on a GPU goes through the whole step."""
    from stages.cache_teacher.teacher.forward import TeacherStep
    from stages.cache_teacher.teacher.teacher import Teacher
    from stages.cache_teacher.teacher.teacher_files import resolve_teacher
    from tests.support.tiny import tiny_cache_config

    config = tiny_cache_config(tiny_teacher, "unused")
    source = resolve_teacher(config)
    teacher = Teacher(source, CPU)
    spec = sample_spec(teacher=source.spec, sequence_length=32)
    step = TeacherStep(teacher, spec, config, sample_shared())
    rows = step.launch(full_rows(3, 32, source.spec.vocab_size), 0, 0).rows()
    assert [int((row.kept.num_ids > 0).sum()) for row in rows] == [32, 32, 32]
