"""Directories of runs that nobody has trained: their record and figures are made up."""

import json
from pathlib import Path
from typing import Any

from stages.train_student.checkpoints.extension import Extension
from stages.train_student.checkpoints.recorded_caches import RecordedCache
from stages.train_student.checkpoints.run_record import RunData, RunRecord, write_record
from stages.train_student.config import TrainStudentConfig
from stages.train_student.trainer.run_directory import with_new_settings

NUM_STEPS = 8
CACHE_ID = "ab" * 32


def write_run(
    path: Path,
    *,
    seed: int = 0,
    loss: float = 4.0,
    steps: int = NUM_STEPS,
    is_finished: bool = True,
    cache_id: str = CACHE_ID,
    figures: dict[str, float] | None = None,
    extensions: tuple[Extension, ...] = (),
    environment: dict[str, str] | None = None,
    init_location: str | None = None,
    recorded_caches: tuple[RecordedCache, ...] | None = None,
    **settings: Any,
) -> Path:
    """A run of ``steps`` of 8 steps of 4 rows of 32 positions whose validation loss ends at
    ``loss``; ``figures`` are added to the last line, ``settings`` to its identity."""
    path.mkdir(parents=True)
    identity = with_new_settings({}, TrainStudentConfig()) | {
        "cache_id": cache_id,
        "teacher": {"source": "a teacher", "revision": "main", "weights_sha256": "cd" * 32},
        "num_train_rows": 16,
        "num_validation_rows": 10,
        "num_train_shards": 2,
        "num_validation_shards": 1,
        "shards_sha256": "ef" * 32,
        "max_steps": NUM_STEPS,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "seed": seed,
    }
    record = RunRecord(
        identity=identity | settings,
        cache_location="/nowhere/cache",
        caches=recorded_caches,
        init_location=init_location,
        extensions=extensions,
        data=RunData(sequence_length=32, train_bytes=1000),
        environment=environment,
    )
    write_record(path, record)
    rows: list[dict[str, float]] = [_validation(0, 9.0)]
    for step in range(1, steps + 1):
        rows.append(_training(step))
        rows.append(_validation(step, loss + (steps - step) * 0.1))
    rows[-1] |= figures or {}
    lines = [json.dumps(row) for row in rows]
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (path / "recipe.toml").write_text("[train_student]\nvalidation_rows = 8\ndevice = 'cpu'\n")
    if is_finished:
        (path / "model").mkdir()
        (path / "model/config.json").write_text("{}")
    return path


def _validation(step: int, loss: float) -> dict[str, float]:
    return {
        "step": step,
        "validation/loss": loss,
        "validation/perplexity": 2.0**loss,
        "validation/kl": loss / 4,
        "validation/agreement": 1 / loss,
        "validation/teacher_loss": 2.5,
    }


def _training(step: int) -> dict[str, float]:
    return {
        "step": step,
        "train/loss": 3.0 - step / 10,
        "train/gradient_norm": 1.0 / step,
        "schedule/alpha": 0.8 - step / 100,
        "schedule/temperature": 2.0 - step / 10,
        "speed/tokens_per_second": 64.0,
        "speed/loader_wait_share": 0.25,
        "speed/peak_bytes": 2e9,
    }
