"""Figures of rows against those of the whole split, for every kind of target."""

from pathlib import Path
from typing import Any

import pytest
import torch

import cache_format
from stages.train_student.evaluation.row_scores import score_rows, shards_hash
from stages.train_student.evaluation.validation import (
    score,
    validation_batches,
    validation_rows,
)
from stages.train_student.losses.objective import make_objective
from stages.train_student.new_student import load_student
from tests.support.student_caches import TARGETS, write_cache
from tests.support.train_configs import tiny_train_config

CPU = torch.device("cpu")


@pytest.mark.parametrize("targets", TARGETS)
def test_rows_add_up_to_the_figures_of_the_split(targets: str, tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", TARGETS[targets])
    config = tiny_train_config(loss_chunk=7)
    model = load_student(config, cache)
    objective = make_objective(model, cache, config, CPU)
    found = score_rows(model, objective, validation_batches(cache, 5, 5, 2))
    expected = score(model, objective, validation_batches(cache, 5, 5, 5))
    total = sum(found.num_scored)
    assert len(found.num_scored) == 5
    assert len(set(found.cross_entropy)) > 1
    assert sum(found.cross_entropy) / total == pytest.approx(expected["validation/loss"], rel=1e-5)
    assert sum(found.kl) / total == pytest.approx(expected["validation/kl"], rel=1e-5)
    assert sum(found.num_agreeing) / total == pytest.approx(expected["validation/agreement"])


def test_a_row_scores_alone_what_it_scores_among_others(tiny_cache: Path) -> None:
    cache = cache_format.open(tiny_cache)
    model: Any = load_student(tiny_train_config(), cache)
    objective = make_objective(model, cache, tiny_train_config(), CPU)
    together = score_rows(model, objective, validation_batches(cache, 6, 6, 4))
    alone = score_rows(model, objective, validation_batches(cache, 6, 6, 1))
    assert together.num_scored == alone.num_scored
    assert together.kl == pytest.approx(alone.kl, rel=1e-5)
    assert not any(parameter.grad is not None for parameter in model.parameters())
    assert model.training


def test_rows_are_spread_evenly() -> None:
    assert validation_rows(9, 3) == [0, 4, 8]
    assert validation_rows(3, 10) == [0, 1, 2]


def test_the_hash_is_of_the_validation_split(tmp_path: Path) -> None:
    one = write_cache(tmp_path / "one", TARGETS["top_k"])
    other = write_cache(tmp_path / "other", TARGETS["sampled"])
    assert shards_hash(one) == shards_hash(cache_format.open(tmp_path / "one"))
    assert shards_hash(one) != shards_hash(other)
