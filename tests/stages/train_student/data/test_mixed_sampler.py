"""The order of rows of several caches: a pure function, the same for any number of processes."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from stages.train_student.data.mixed_sampler import MixedSampler, located
from stages.train_student.data.sampler import RankSlice, Sampler


def sampler(*shards: int, seed: int = 0, shuffle_shards: int | None = None) -> Sampler:
    return Sampler(
        seed=seed,
        rows_of_shards=shards,
        shuffle_shards=shuffle_shards,
        batch_size=3,
        gradient_accumulation_steps=4,
    )


WEB, MATH = sampler(20, 13, seed=1), sampler(9, 8, seed=2)
MIXED = MixedSampler(samplers=(WEB, MATH), weights=(0.6, 0.4))


def drawn(order: MixedSampler, steps: range) -> list[tuple[int, int]]:
    return located(np.concatenate([order.rows_of_step(step) for step in steps]).tolist(), 2)


def test_a_step_does_not_depend_on_what_was_asked_before() -> None:
    rising = [MIXED.rows_of_step(step).tolist() for step in range(20)]
    other = replace(MIXED)
    assert [other.rows_of_step(step).tolist() for step in reversed(range(20))] == rising[::-1]


def test_the_mixed_order_equals_the_golden_one() -> None:
    # A checkpoint made with one version must continue the same order with the next.
    order = MixedSampler(
        samplers=tuple(
            replace(sampler(5, 7 + number), seed=number, gradient_accumulation_steps=2)
            for number in range(2)
        ),
        weights=(0.4, 0.6),
    )
    assert [order.rows_of_step(step).tolist() for step in range(5)] == [
        [0, 5, 11, 22, 17, 19],
        [18, 2, 21, 12, 3, 9],
        [6, 13, 25, 10, 1, 23],
        [8, 7, 15, 20, 4, 9],
        [16, 17, 5, 14, 1, 15],
    ]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_processes_share_the_micro_batches_of_a_mixed_step(num_ranks: int) -> None:
    for step in range(2 * MIXED.steps_per_epoch):
        whole = MIXED.rows_of_step(step).reshape(4, 3)
        dealt: dict[int, list[int]] = {}
        for rank in range(num_ranks):
            part = RankSlice(rank, num_ranks)
            rows = MIXED.rows_of_step(step, part).reshape(-1, 3)
            dealt |= dict(zip(part.micro_batches(4), rows.tolist(), strict=True))
        assert [dealt[number] for number in range(4)] == whole.tolist()


def test_the_rows_of_every_micro_batch_are_together_by_cache() -> None:
    for step in range(10):
        for rows in MIXED.rows_of_step(step).reshape(4, 3):
            sources = [source for source, _ in located(rows.tolist(), 2)]
            assert sources == sorted(sources)


@pytest.mark.parametrize("weights", [(0.6, 0.4), (1.0, 9.0), (33, 17)])
def test_shares_match_the_weights_within_a_row_after_every_step(
    weights: tuple[float, float],
) -> None:
    order = replace(MIXED, weights=weights)
    for num_steps in range(1, 40):
        counts = Counter(source for source, _ in drawn(order, range(num_steps)))
        for source, weight in enumerate(weights):
            expected = num_steps * 12 * weight / sum(weights)
            assert abs(counts[source] - expected) < 1


def test_each_cache_is_read_once_in_each_of_its_passes() -> None:
    """Whatever its weight: no row is drawn again before all others of its cache were."""
    rows = drawn(MIXED, range(30))
    for source, num_rows in enumerate((33, 17)):
        own = [row for number, row in rows if number == source]
        passes = [own[start : start + num_rows] for start in range(0, len(own), num_rows)]
        assert len(passes) > 3
        for one in passes[:-1]:
            assert sorted(one) == list(range(num_rows))
        assert passes[0] != passes[1]


def test_weights_of_the_numbers_of_rows_read_each_row_once_in_an_epoch() -> None:
    order = MixedSampler(samplers=(sampler(23), sampler(13)), weights=(23, 13))
    assert order.steps_per_epoch == 3  # of 12 rows
    assert Counter(drawn(order, range(3))) == Counter(
        [(0, row) for row in range(23)] + [(1, row) for row in range(13)]
    )


def test_an_epoch_has_as_many_rows_as_all_caches() -> None:
    assert MIXED.steps_per_epoch == 50 // 12
    assert replace(MIXED, weights=(1, 99)).steps_per_epoch == 50 // 12
    with pytest.raises(ValueError, match="11 training rows, fewer than one step's 12"):
        _ = MixedSampler(samplers=(sampler(5), sampler(6)), weights=(1, 1)).steps_per_epoch


def test_shuffling_is_limited_to_the_shards_of_a_window_in_each_cache() -> None:
    order = MixedSampler(
        samplers=(sampler(6, 6, shuffle_shards=1), sampler(6, 6, shuffle_shards=1)), weights=(1, 1)
    )
    rows = drawn(order, range(2))
    for source in range(2):
        shards = [row // 6 for number, row in rows if number == source]
        assert len(set(shards[:6])) == len(set(shards[6:])) == 1


def test_one_cache_is_in_the_same_order_as_before() -> None:
    order = Sampler(
        seed=3,
        rows_of_shards=(10, 5, 7),
        shuffle_shards=2,
        batch_size=2,
        gradient_accumulation_steps=2,
    )
    assert [order.rows_of_step(step).tolist() for step in range(7)] == [
        [11, 18, 13, 17],
        [14, 10, 15, 19],
        [21, 16, 12, 20],
        [1, 0, 7, 2],
        [6, 5, 9, 3],
        [15, 13, 10, 18],
        [11, 12, 16, 21],
    ]
