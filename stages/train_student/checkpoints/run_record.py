"""``run.json``: the identity of a run, and further information about it.

The file is sealed. ``identity`` alone is compared when a run is resumed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache_format.errors import NextStep
from cache_format.storage.os_errors import reading
from stages.next_steps import StageAction
from stages.train_student.checkpoints.extension import Extension
from stages.train_student.checkpoints.recorded_caches import RecordedCache, identity_of_cache
from stages.train_student.run_files import parse_run_file, read_run_file, write_run_file

RUN_FILE = "run.json"


@dataclass(frozen=True)
class RunRows:
    """How many rows of each split the run uses: the first ones, in the order of units."""

    train: int
    validation: int


@dataclass(frozen=True, kw_only=True)
class RunData:
    """How much a pass over the training rows reads."""

    sequence_length: int
    """Positions of a row."""
    train_bytes: int
    """Size of the shards that the training rows are in; of several caches, by how often each is
    read in an epoch."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What ``run.json`` says."""

    identity: dict[str, Any]
    """Cache, teacher, initial weights and settings: what makes the run's result what it is."""
    cache_location: str
    """Where the cache lay when it was last used: an absolute path or a URL. Of several, that which
    the teacher's parts were taken from."""
    caches: tuple[RecordedCache, ...] | None = None
    """Only where there are several."""
    init_location: str | None = None
    """Where the initial weights lay; absent where they were random."""
    origin_sha256: str | None = None
    """Hash of the trained weights that the run began with, random or not; see
    ``saved_tensors.trained_sha256``. Absent in runs of older versions."""
    extensions: tuple[Extension, ...] = ()
    """What was added after the run had begun, in order."""
    data: RunData | None = None
    """Absent in runs of older versions."""
    environment: dict[str, str] | None = None
    """Versions and machine that the run began with; absent in runs of older versions."""

    @property
    def rows(self) -> RunRows:
        """The rows that the run uses of its one cache; of several, their sums.

        Raises KeyError where the identity does not tell.
        """
        return RunRows(self.identity["num_train_rows"], self.identity["num_validation_rows"])

    def rows_of(self, cache_id: str) -> RunRows:
        """The rows that the run uses of one of its caches; raises KeyError as ``rows`` does."""
        own = identity_of_cache(self.identity, cache_id)
        return RunRows(own["num_train_rows"], own["num_validation_rows"])

    @property
    def cache_locations(self) -> list[str]:
        """Where all of its caches lay."""
        if self.caches is None:
            return [self.cache_location]
        return [cache.location for cache in self.caches]


def read_record(run: Path) -> RunRecord:
    """The record of the run in the directory ``run``. Raises ValueError if it is damaged."""
    path = run / RUN_FILE
    step = NextStep(
        "So its checkpoints cannot be resumed, but a new run can begin from their weights: use "
        f"{run} as its initial weights.",
        StageAction.INITIAL_WEIGHTS,
    )
    with reading(path):
        data = read_run_file(path)
    return parse_run_file(RunRecord, data, path, step)


def write_record(run: Path, record: RunRecord) -> None:
    """Make ``run.json`` hold ``record``."""
    write_run_file(run / RUN_FILE, record)
