"""Choose the rows per forward pass: as set, or as many as fit in memory.

In: a ``TeacherStep`` whose weights are on the device. Out: a number of rows.
On a GPU it is found by trying batches of full rows, twice as many each time, while a tenth of the
memory is held back; rows that came out of the trial are thrown away.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from cache_format.metadata.spec import CacheSpec
from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.teacher.forward import TeacherStep
from stages.compute.out_of_memory import is_out_of_memory

MOST_POSITIONS = 32_768
"""On a GPU: products are large by then, and a unit is to be many batches."""
CPU_POSITIONS = 2_048
"""On a processor, where 1 to 16 rows of 512 positions run at about one speed."""
_HELD_BACK = 0.1  # of all memory: for longer documents, other sizes, fragments


def rows_per_forward(
    asked: int | None, step: TeacherStep, spec: CacheSpec, device: torch.device, num_in_flight: int
) -> int:
    """Rows in one forward pass, ``asked`` if that is a number.

    ``num_in_flight`` batches are launched before the first of them is waited for. Raises ValueError
    where not even one row fits.
    """
    if asked is not None:
        return asked
    length = spec.sequence_length
    if device.type != "cuda":
        return max(1, CPU_POSITIONS // length)

    def launch(num_rows: int) -> None:
        batch = full_rows(num_rows, length, spec.teacher.vocab_size)
        pending = [step.launch(batch, 0, 0) for _ in range(num_in_flight)]
        torch.cuda.synchronize(device)
        del pending

    with _memory_held_back(device):
        num_rows = rows_that_fit(launch, MOST_POSITIONS // length, torch.cuda.empty_cache)
    if num_rows == 0:
        raise ValueError(
            f"out of memory: not even one row of {length} positions fits on {device} beside the "
            "teacher. Lower cache_teacher.head_chunk or cache_teacher.sequence_length, or use a "
            "device with more memory."
        )
    return num_rows


def rows_that_fit(
    try_rows: Callable[[int], None], most: int, free_memory: Callable[[], None]
) -> int:
    """The largest power of two up to ``most`` (and 1) that ``try_rows`` has memory for, or 0.

    ``free_memory`` is called after every trial: what one leaves behind is not for the next.
    """
    num_rows, fit = 1, 0
    while num_rows <= max(1, most) and _fits(try_rows, num_rows):
        free_memory()
        num_rows, fit = 2 * num_rows, num_rows
    free_memory()
    return fit


def full_rows(num_rows: int, sequence_length: int, vocab_size: int) -> PackedUnit:
    """Rows of one document each, which take the most memory: every position is scored."""
    ids = np.arange(num_rows * (sequence_length + 1), dtype=np.int32) % vocab_size
    return PackedUnit(
        token_ids_RT=ids.reshape(num_rows, sequence_length + 1),
        document_starts=[np.empty(0, np.int32)] * num_rows,
        num_dropped_tokens=0,
    )


def _fits(try_rows: Callable[[int], None], num_rows: int) -> bool:
    """The error is gone when this returns, and with it the frames that hold tensors."""
    try:
        try_rows(num_rows)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


@contextmanager
def _memory_held_back(device: torch.device) -> Iterator[None]:
    free_bytes, all_bytes = torch.cuda.mem_get_info(device)
    num_bytes = min(int(_HELD_BACK * all_bytes), free_bytes // 2)
    held = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    try:
        yield
    finally:
        del held
        torch.cuda.empty_cache()
