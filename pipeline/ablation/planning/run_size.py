"""How much a run of a sweep computes and writes, as far as that is known before it is trained.

In: settings, an open cache, and what was measured of the same recipe. Out: steps, tokens, seconds
and bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cache_format.reader import Cache
from pipeline.run_report.recorded.recorded_run import read_run
from pipeline.run_report.recorded.run_costs import run_costs
from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.sampler import steps_per_epoch

_FORWARD_SHARE = 1 / 3
"""Of a training step's time, that a token of validation takes: no gradients."""


@dataclass(frozen=True, kw_only=True)
class RunSize:
    """What a run computes."""

    num_steps: int
    tokens_per_step: int
    validation_tokens: int
    """Of all its validations."""

    @property
    def tokens(self) -> int:
        """That it is trained on, repetitions included."""
        return self.num_steps * self.tokens_per_step


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a run of the same recipe took; None where it does not tell."""

    tokens_per_second: float | None = None
    model_bytes: int | None = None
    checkpoint_bytes: int | None = None

    def seconds(self, size: RunSize) -> float | None:
        """Of a whole run: its steps and validations."""
        if not self.tokens_per_second:
            return None
        tokens = size.tokens + _FORWARD_SHARE * size.validation_tokens
        return tokens / self.tokens_per_second

    def bytes_at_most(self, config: TrainStudentConfig) -> int | None:
        """On the disk: the model, the checkpoints that are kept, and one that is being written."""
        if self.model_bytes is None or self.checkpoint_bytes is None:
            return None
        return self.model_bytes + self.checkpoint_bytes * (config.save_total_limit + 1)


def run_size(config: TrainStudentConfig, cache: Cache) -> RunSize:
    """Of a run of ``config``. Raises ValueError where the cache has too few rows for a step."""
    rows_per_step = config.batch_size * config.gradient_accumulation_steps
    per_epoch = steps_per_epoch(rows_per_step, cache.num_rows("train"))
    num_steps = config.max_steps or per_epoch * config.num_train_epochs
    num_validations = 1 + -(-num_steps // config.eval_steps)
    num_rows = min(config.validation_rows, cache.num_rows("validation"))
    length = cache.spec.sequence_length
    return RunSize(
        num_steps=num_steps,
        tokens_per_step=rows_per_step * length,
        validation_tokens=num_validations * num_rows * length,
    )


def measured(run: Path) -> Measured | None:
    """What the run in the directory ``run`` tells; None where it has not reported a step."""
    if not (run / "run.json").is_file():
        return None
    costs = run_costs(read_run(run, run.name))
    checkpoints = sorted((run / "checkpoints").glob("step-*"))
    model = run / "model"
    if costs.tokens_per_second is None:
        return None
    return Measured(
        tokens_per_second=costs.tokens_per_second,
        model_bytes=bytes_below(model) if model.is_dir() else None,
        checkpoint_bytes=bytes_below(checkpoints[-1]) if checkpoints else None,
    )


def total_seconds(seconds: Sequence[float], num_slots: int) -> float:
    """Of runs of so many seconds, ``num_slots`` at a time, begun in this order."""
    ends = [0.0] * num_slots
    for each in seconds:
        first = ends.index(min(ends))
        ends[first] += each
    return max(ends)


def total_bytes(configs: Sequence[TrainStudentConfig], found: Sequence[Measured | None]) -> int:
    """What runs need at most, as far as it is known."""
    needed = (
        None if each is None else each.bytes_at_most(config)
        for config, each in zip(configs, found, strict=True)
    )
    return sum(filter(None, needed))


def mean_measured(found: Mapping[str, Measured]) -> Measured:
    """For recipes of which nothing was measured: the mean of the others."""
    speeds = [each.tokens_per_second for each in found.values() if each.tokens_per_second]
    return Measured(tokens_per_second=sum(speeds) / len(speeds) if speeds else None)


def bytes_below(directory: Path) -> int:
    """The size of all files in ``directory``."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
