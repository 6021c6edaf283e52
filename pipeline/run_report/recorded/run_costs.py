"""What a run has cost until now: tokens, bytes read, seconds.

In: a run. Out: figures from its record and its ``speed/*`` curves, each None where they do not
tell. Runs of older versions do not record how much a pass reads: their cache is asked, if it is a
directory that is still there.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.run_report.recorded.recorded_run import RecordedRun, count_of

if TYPE_CHECKING:
    from stages.train_student.checkpoints.run_record import RunData


@dataclass(frozen=True, kw_only=True)
class RunCosts:
    """Of the training until the last reported step."""

    tokens: float | None
    bytes_read: float | None
    """Bytes of the cache's shards, once for each pass over them; validation is not counted."""
    seconds: float | None
    """Of optimizer steps, by the speed of those that were reported; of no validation or saving."""
    tokens_per_second: float | None
    """Over all of these seconds."""
    peak_bytes: float | None
    loader_wait_share: float | None
    """Mean share of a step that was spent waiting for the cache."""


def run_costs(run: RecordedRun) -> RunCosts:
    """The costs of ``run``."""
    data, rows_per_step = run_data(run), run.rows_per_step
    num_rows = count_of(run.identity.get("num_train_rows"))
    step = run.metrics.last_step
    tokens_per_step = bytes_read = seconds = None
    if data is not None and rows_per_step is not None:
        tokens_per_step = rows_per_step * data.sequence_length
        seconds = _seconds(run, tokens_per_step)
        if num_rows is not None:
            bytes_read = data.train_bytes * (step * rows_per_step / num_rows)
    tokens = None if tokens_per_step is None else float(step * tokens_per_step)
    waits = run.metrics.of("speed/loader_wait_share").values()
    return RunCosts(
        tokens=tokens,
        bytes_read=bytes_read,
        seconds=seconds,
        tokens_per_second=tokens / seconds if tokens and seconds else None,
        peak_bytes=run.metrics.last("speed/peak_bytes"),
        loader_wait_share=sum(waits) / len(waits) if waits else None,
    )


def run_data(run: RecordedRun) -> "RunData | None":
    """How much a pass of ``run`` reads."""
    from cache_format.opening import open_cache
    from stages.train_student.checkpoints.run_record import RunData

    if run.record is None:
        return None
    if run.record.data is not None:
        return run.record.data
    place = Path(run.record.cache_location)
    # Whoever wrote the run may have put a URL there, which is not contacted.
    if "://" in run.record.cache_location or not place.is_absolute() or not place.is_dir():
        return None
    with suppress(ValueError, OSError, RuntimeError):
        cache = open_cache(place, allow_incomplete=True)
        if cache.cache_id == run.cache_id:
            return RunData(
                sequence_length=cache.spec.sequence_length,
                train_bytes=sum(shard.num_bytes for shard in cache.shards("train")),
            )
    return None


def _seconds(run: RecordedRun, tokens_per_step: int) -> float | None:
    """Each reported step stands for those since the one before."""
    total, before = 0.0, 0
    for step, speed in run.metrics.of("speed/tokens_per_second").items():
        if speed > 0 and step > before:
            total += (step - before) * tokens_per_step / speed
            before = step
    return total or None
