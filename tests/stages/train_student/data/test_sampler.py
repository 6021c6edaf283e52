"""The order of rows is a pure function that visits each row once an epoch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.sampler import (
    RankSlice,
    Sampler,
    _splitmix64,
    epoch_order,
    micro_batch_seed,
    steps_per_epoch,
)

SHARDS = (7, 0, 12, 5, 9, 3, 8)


def test_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch() -> None:
    orders = [epoch_order(seed, epoch, (400, 600)) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert sorted(order) == list(range(1000))
    assert len({order.tobytes() for order in orders}) == 4


def test_the_row_order_equals_the_golden_one() -> None:
    # A checkpoint made with one version must continue the same order with the next.
    assert epoch_order(0, 0, (10,)).tolist() == [0, 9, 1, 6, 3, 5, 4, 2, 8, 7]
    assert epoch_order(7, 3, (2, 4)).tolist() == [2, 1, 3, 4, 0, 5]
    assert epoch_order(0, 0, (3, 3, 2, 2), 2).tolist() == [0, 1, 3, 5, 4, 2, 9, 6, 8, 7]


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 14), st.integers(0, 3))
def test_a_window_of_all_shards_gives_the_full_shuffle(
    shards: list[int], more: int, epoch: int
) -> None:
    everything = epoch_order(5, epoch, tuple(shards))
    assert everything.tolist() == epoch_order(5, epoch, (sum(shards),)).tolist()
    windowed = epoch_order(5, epoch, tuple(shards), len(shards) + more)
    assert windowed.tolist() == everything.tolist()


@pytest.mark.parametrize("shuffle_shards", [1, 2, 3, 6])
def test_windowed_order_needs_at_most_the_given_number_of_shards_at_once(
    shuffle_shards: int,
) -> None:
    shard_of_row = np.repeat(np.arange(len(SHARDS)), SHARDS)
    orders_of_shards = set()
    for epoch in range(20):
        order = epoch_order(1, epoch, SHARDS, shuffle_shards)
        assert sorted(order) == list(range(sum(SHARDS)))
        shards = shard_of_row[order]
        spans = {int(s): np.flatnonzero(shards == s)[[0, -1]] for s in np.unique(shards)}
        for place in range(len(shards)):
            needed = [s for s, (first, last) in spans.items() if first <= place <= last]
            assert len(needed) <= shuffle_shards
        orders_of_shards.add(tuple(sorted(spans, key=lambda s: int(spans[s][0]))))
    assert len(orders_of_shards) > 10


def test_rows_within_a_window_are_shuffled_across_shards() -> None:
    order = epoch_order(0, 0, (50,) * 8, 2)
    for start in range(0, 400, 100):
        shards = order[start : start + 100] // 50
        assert len(set(shards.tolist())) == 2
        assert np.count_nonzero(np.diff(shards)) > 25


def test_the_hash_is_splitmix64() -> None:
    # First output of the reference implementation from state 1234567.
    assert _splitmix64(np.array([1234567], np.uint64)).tolist() == [6457827717110365317]


@pytest.mark.parametrize("shuffle_shards", [None, 2])
def test_the_steps_of_an_epoch_visit_each_row_once(shuffle_shards: int | None) -> None:
    order = Sampler(
        seed=3,
        rows_of_shards=(10, 5, 7),
        shuffle_shards=shuffle_shards,
        batch_size=2,
        gradient_accumulation_steps=2,
    )
    assert order.steps_per_epoch == 5
    rows = np.concatenate([order.rows_of_step(step) for step in range(5)])
    assert len(set(rows.tolist())) == 20
    again = np.concatenate([order.rows_of_step(step) for step in range(5, 10)])
    assert rows.tolist() != again.tolist()


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_processes_share_the_micro_batches_of_a_step(num_ranks: int) -> None:
    """However many there are, and if their number changes between steps: the same micro-batches."""
    order = Sampler(
        seed=3,
        rows_of_shards=(30, 31),
        shuffle_shards=None,
        batch_size=3,
        gradient_accumulation_steps=4,
    )
    for step in range(2 * order.steps_per_epoch):
        whole = order.rows_of_step(step).reshape(4, 3)
        dealt: dict[int, list[int]] = {}
        for rank in range(num_ranks):
            part = RankSlice(rank, num_ranks)
            rows = order.rows_of_step(step, part).reshape(-1, 3)
            dealt |= dict(zip(part.micro_batches(4), rows.tolist(), strict=True))
        assert [dealt[number] for number in range(4)] == whole.tolist()


def test_every_micro_batch_has_its_own_seed() -> None:
    seeds = {
        micro_batch_seed(seed, step, number)
        for seed in range(3)
        for step in range(50)
        for number in range(8)
    }
    assert len(seeds) == 3 * 50 * 8
    torch.manual_seed(max(seeds))  # takes all 64 bits


def test_fewer_rows_than_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="3 training rows, fewer than one step's 4"):
        steps_per_epoch(4, 3)
    with pytest.raises(ValueError, match="no training rows"):
        steps_per_epoch(4, 0)


def test_a_shuffle_window_below_one_shard_is_refused() -> None:
    for shuffle_shards in (None, 1):
        assert TrainStudentConfig(shuffle_shards=shuffle_shards).shuffle_shards == shuffle_shards
    with pytest.raises(ValueError, match="shuffle_shards: must be 1 or more"):
        TrainStudentConfig(shuffle_shards=0)
