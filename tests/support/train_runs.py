"""Runs of stage two, and what they leave."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

import cache_format
from stages.train_student.config import TrainStudentConfig
from stages.train_student.run import train_student
from stages.train_student.tracking.run_progress import TrainProgress
from stages.train_student.trainer.stopping import StopRequest


def run(
    config: TrainStudentConfig,
    cache: Path,
    out: Path,
    *,
    resume: bool = False,
    report: Callable[[TrainProgress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    init: Path | None = None,
    teacher: Path | None = None,
    extend_to: int | None = None,
) -> dict[str, float]:
    return train_student(
        config,
        cache_format.open(cache),
        out,
        resume=resume,
        recipe_toml="# tiny\n",
        report=report,
        stop=StopRequest(is_made=stop),
        init=init,
        teacher=teacher,
        extend_to=extend_to,
    )


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def metrics(out: Path) -> list[dict[str, float]]:
    """Lines of metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in rows]
