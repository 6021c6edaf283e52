"""Caches whose units are divided by rows: validation rows are never trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import cache_format
from cache_format.metadata.spec import Split
from cache_format.reader import Cache
from cache_format.writer import CacheWriter
from stages.train_student.checkpoints.run_record import RunRows
from stages.train_student.config import TrainStudentConfig
from stages.train_student.data import batch
from stages.train_student.data.batch import Batch, read_batch
from stages.train_student.data.loader import Loader, row_order
from stages.train_student.data.sampler import RankSlice
from stages.train_student.evaluation import validation
from stages.train_student.trainer.run_directory import prepare
from tests.support import tiny
from tests.support.sample_cache import ROWS_OF_UNIT, fill, sample_shared, sample_spec
from tests.support.train_configs import tiny_train_config
from tests.support.train_runs import run

ROWS = sample_spec(validation_split="rows")
Ids = set[tuple[int, ...]]


def write_units(path: Path, units: list[int]) -> Cache:
    """The cache at ``path``, with these units more."""
    writer = CacheWriter.create_or_open(path, ROWS, sample_shared())
    fill(writer, units)
    writer.publish_manifest(num_tokens_requested=1, complete=True)
    return cache_format.open(path)


def ids_of(cache: Cache, split: Split) -> Ids:
    """The token ids of the rows of ``split``, no two of which are the same."""
    rows = [tuple(row.token_ids[:-1].tolist()) for _, row in cache.iter_rows(split)]
    assert len(set(rows)) == len(rows) == cache.num_rows(split)
    return set(rows)


def input_ids_of(batch: Batch) -> Ids:
    return set(map(tuple, batch.input_ids.tolist()))


@pytest.mark.parametrize("units", [[0], sorted(ROWS_OF_UNIT)])
@pytest.mark.parametrize("shuffle_shards", [None, 1, 2])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_the_loader_gives_all_training_rows_and_no_others(
    tmp_path: Path, units: list[int], shuffle_shards: int | None, num_ranks: int
) -> None:
    cache = write_units(tmp_path, units)
    train, validation = ids_of(cache, "train"), ids_of(cache, "validation")
    assert not train & validation
    assert len(train | validation) == sum(ROWS_OF_UNIT[unit] for unit in units)
    config = TrainStudentConfig(
        batch_size=1, gradient_accumulation_steps=num_ranks, shuffle_shards=shuffle_shards, seed=2
    )
    order = row_order(cache, config, cache.num_rows("train"))
    seen: Ids = set()
    for rank in range(num_ranks):
        part = RankSlice(rank, num_ranks)
        with Loader(
            cache, order, torch.device("cpu"), part, num_threads=1, with_sketch=False
        ) as batches:
            for step in batches.steps(0, 8 * order.steps_per_epoch):
                seen |= set().union(*map(input_ids_of, step))
    assert seen == train


def test_a_cache_of_one_unit_trains_a_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny.tiny_cache(tmp_path, num_documents=10, validation_split="rows")
    cache = cache_format.open(path)
    assert len(cache.manifest.shards) == 1
    trained: Ids = set()
    validated: Ids = set()

    def watched(read: Ids) -> Any:
        def read_and_note(
            cache: Cache, split: Split, indices: Sequence[int], *, with_sketch: bool
        ) -> Batch:
            found = read_batch(cache, split, indices, with_sketch=with_sketch)
            read.update(input_ids_of(found))
            return found

        return read_and_note

    monkeypatch.setattr(batch, "read_batch", watched(trained))
    monkeypatch.setattr(validation, "read_batch", watched(validated))
    config = tiny_train_config(
        gradient_accumulation_steps=1, max_steps=None, num_train_epochs=2, validation_rows=10**6
    )
    metrics = run(config, path, tmp_path / "run")
    assert metrics["validation/loss"] > 0
    assert trained == ids_of(cache, "train")
    assert validated == ids_of(cache, "validation")


def test_a_run_keeps_its_rows_when_the_cache_is_extended(tmp_path: Path) -> None:
    config, out = TrainStudentConfig(batch_size=1, gradient_accumulation_steps=1), tmp_path / "run"
    cache = write_units(tmp_path / "cache", [0, 1])
    rows = prepare(out, cache, config, resume=False, recipe_toml="").rows
    assert rows == RunRows(train=5, validation=3)
    trained = [row.token_ids.tolist() for _, row in cache.iter_rows("train")]
    (out / "checkpoints/step-1").mkdir(parents=True)
    extended = write_units(tmp_path / "cache", [2, 3])
    assert extended.num_rows("train") == 6
    assert prepare(out, extended, config, resume=True, recipe_toml="").rows == rows
    order = row_order(extended, config, rows.train)
    assert order.rows_of_shards == (2, 3)
    assert [extended.read_row("train", n)[1].token_ids.tolist() for n in range(5)] == trained
