"""The loader: its order is a pure function, and its tensors are the cache's rows."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import cache_format
from cache_format.errors import CacheError
from stages.train_student.loader import (
    Loader,
    _splitmix64,
    epoch_order,
    read_batch,
    step_rows,
    steps_per_epoch,
)


def test_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch() -> None:
    orders = [epoch_order(seed, epoch, 1000) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert sorted(order) == list(range(1000))
    assert len({order.tobytes() for order in orders}) == 4


def test_the_order_is_frozen() -> None:
    # A checkpoint made with one version must continue the same order with the next.
    assert epoch_order(0, 0, 10).tolist() == [0, 9, 1, 6, 3, 5, 4, 2, 8, 7]
    assert epoch_order(7, 3, 6).tolist() == [2, 1, 3, 4, 0, 5]


def test_the_hash_is_splitmix64() -> None:
    # First output of the reference implementation from state 1234567.
    assert _splitmix64(np.array([1234567], np.uint64)).tolist() == [6457827717110365317]


def test_the_steps_of_an_epoch_visit_each_row_once() -> None:
    num_steps = steps_per_epoch(4, 22)
    assert num_steps == 5
    rows = np.concatenate([step_rows(3, step, 4, 22) for step in range(num_steps)])
    assert len(set(rows.tolist())) == 20
    again = np.concatenate([step_rows(3, step, 4, 22) for step in range(5, 10)])
    assert rows.tolist() != again.tolist()


def test_fewer_rows_than_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="3 training rows, fewer than one step's 4"):
        steps_per_epoch(4, 3)


def test_batches_hold_the_rows_of_the_cache(tiny_cache: Path) -> None:
    cache = cache_format.open(tiny_cache)
    batch = read_batch(cache, "train", [3, 0, 5], with_sketch=True)
    for place, index in enumerate((3, 0, 5)):
        _, row = cache.read_row("train", index)
        assert batch.input_ids[place].tolist() == row.token_ids[:-1].tolist()
        is_scored = batch.labels[place] >= 0
        assert is_scored.tolist() == row.scored().tolist()
        assert batch.labels[place][is_scored].tolist() == row.token_ids[1:][row.scored()].tolist()
        starts = batch.is_document_start[place].nonzero()[:, 0].tolist()
        assert starts == [0, *(s for s in row.document_starts.tolist() if 0 < s < 32)]
        position = int(is_scored.nonzero()[4, 0])
        begin = int(row.num_kept[:position].sum())
        kept = int(row.num_kept[position])
        assert batch.kept_ids[place, position, :kept].tolist() == (
            row.kept_ids[begin : begin + kept].tolist()
        )
        assert torch.isinf(batch.gaps[place, position, kept:]).all()
        assert (
            batch.gaps[place, position, :kept].tolist() == row.gaps[begin : begin + kept].tolist()
        )


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_change_nothing(tiny_cache: Path, num_threads: int) -> None:
    cache = cache_format.open(tiny_cache)
    num_rows = cache.num_rows("train")
    with Loader(
        cache, num_rows=num_rows, seed=5, rows_per_step=2, num_threads=num_threads, with_sketch=True
    ) as loader:
        batches = list(loader.steps(2, 9))
    for step, batch in zip(range(2, 9), batches, strict=True):
        rows = step_rows(5, step, 2, num_rows).tolist()
        expected = read_batch(cache, "train", rows, with_sketch=True)
        assert torch.equal(batch.input_ids, expected.input_ids)
        assert torch.equal(batch.signs, expected.signs)  # type: ignore[arg-type]


def test_a_reader_s_failure_reaches_the_caller(tiny_cache: Path, tmp_path: Path) -> None:
    copy = tmp_path / "cache"
    shutil.copytree(tiny_cache, copy)
    cache = cache_format.open(copy)
    entry = cache.shards("train")[0]
    path = copy / entry.file
    path.chmod(0o644)
    damaged = bytearray(path.read_bytes())
    for position in range(len(damaged) // 3, 2 * len(damaged) // 3):
        damaged[position] ^= 1
    path.write_bytes(damaged)
    with (
        Loader(
            cache,
            num_rows=entry.num_rows,
            seed=0,
            rows_per_step=1,
            num_threads=2,
            with_sketch=False,
        ) as loader,
        pytest.raises(CacheError, match=path.name),
    ):
        list(loader.steps(0, entry.num_rows))
