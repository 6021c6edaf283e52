"""A published student of the tiny teacher that is not trained, but whose outputs differ."""

from pathlib import Path
from typing import Any

import torch

import cache_format
from stages.train_student.export.checksums import CHECKSUMS
from stages.train_student.export.publish_model import publish_model
from stages.train_student.new_student import load_student
from tests.support.train_configs import tiny_train_config


def publish_student(cache: Path, run: Path, *, has_checksums: bool = False, **changes: Any) -> Path:
    """``run`` with a model of ``cache``'s teacher, whose weights are noise.

    By default without checksums: a test may change its files as a stranger would.
    """
    opened = cache_format.open(cache)
    config = tiny_train_config(dropout=0.0, **changes)
    student = load_student(config, opened)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    run.mkdir(exist_ok=True)
    publish_model(student, opened, run / "model", config=config)
    if not has_checksums:
        (run / "model" / CHECKSUMS).unlink()
    return run
