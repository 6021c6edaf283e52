"""Which units a budget needs: the same set for all who ask, whatever they know."""

import random
from pathlib import Path

import pytest

import cache_format
from cache_format.writer import CacheWriter
from stages.cache_teacher.config import ALL_UNITS, UnitRange
from stages.cache_teacher.engine.need import Budget, is_needed, is_needed_of_part
from stages.cache_teacher.engine.workers import WorkerShare


class TestIsNeeded:
    @pytest.mark.parametrize(
        ("num_held", "num_unknown", "largest", "expected"),
        [
            (0, 0, 0, True),  # nothing comes before the first unit
            (99, 0, 50, True),
            (100, 0, 50, False),
            (100, 3, 50, False),  # the others can only add to it
            (10, 1, 11, True),  # 10 + 8 · 11 = 98
            (12, 1, 11, None),  # 100
            (0, 5, 0, None),  # nothing is known of any size
        ],
    )
    def test_by_what_is_known(
        self, num_held: int, num_unknown: int, largest: int, expected: bool | None
    ) -> None:
        assert is_needed(100, num_held, num_unknown, largest) is expected

    @pytest.mark.parametrize(
        ("unit", "end", "held", "expected"),
        [(4, 9, 10**9, True), (4, None, 10**9, True), (6, None, 33, True), (6, None, 34, False)],
    )
    def test_of_a_part(self, unit: int, end: int | None, held: int, expected: bool) -> None:
        assert is_needed_of_part(unit, UnitRange(first=4, end=end), 100, held) is expected


class Sizes:
    """How many tokens the units of an imagined corpus hold, and who asked for them."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self.counted: list[int] = []

    def count(self, unit: int) -> int:
        self.counted.append(unit)
        return self.sizes[unit] if unit < len(self.sizes) else 0

    def needed(self, num_tokens: int) -> list[int]:
        return [u for u in range(len(self.sizes)) if sum(self.sizes[:u]) < num_tokens]


@pytest.fixture
def writer(tiny_cache: Path) -> CacheWriter:
    """A cache of which ``Budget`` reads the receipts."""
    cache = cache_format.open(tiny_cache)
    return CacheWriter(cache.storage, cache.spec, cache.ranks)


@pytest.fixture
def no_receipts(writer: CacheWriter, monkeypatch: pytest.MonkeyPatch) -> CacheWriter:
    monkeypatch.setattr("cache_format.layout.receipt_units", lambda _: [])
    return writer


@pytest.mark.parametrize("seed", range(20))
def test_workers_who_know_nothing_of_each_other_share_the_needed_units(
    no_receipts: CacheWriter, seed: int
) -> None:
    rng = random.Random(seed)
    corpus = Sizes([rng.randrange(60, 450) for _ in range(60)])
    num_tokens = rng.randrange(1, sum(corpus.sizes))
    num_workers = rng.randrange(1, 9)
    made = []
    for worker in range(num_workers):
        budget = Budget(num_tokens, no_receipts, corpus.count)
        for unit in budget.wanted(WorkerShare(worker=worker, num_workers=num_workers)):
            made.append(unit)
            budget.note(unit, corpus.sizes[unit])
    assert sorted(made) == corpus.needed(num_tokens)


def test_far_from_the_budget_nothing_of_others_is_counted(no_receipts: CacheWriter) -> None:
    corpus = Sizes([100] * 1000)
    budget = Budget(90_000, no_receipts, corpus.count)
    wanted = budget.wanted(WorkerShare(worker=3, num_workers=4))
    assert next(wanted) == 3
    assert corpus.counted == [3]  # its own, for the scale
    for unit in wanted:
        budget.note(unit, 100)
        if unit > 100:
            break
    assert corpus.counted == [3]


def test_nothing_is_counted_twice(no_receipts: CacheWriter) -> None:
    corpus = Sizes([100] * 50)
    budget = Budget(3000, no_receipts, corpus.count)
    for unit in budget.wanted(WorkerShare(worker=1, num_workers=2)):
        budget.note(unit, 100)
    assert sorted(corpus.counted) == sorted(set(corpus.counted))
    assert set(corpus.counted) - {1} <= set(range(0, 30, 2))


def test_receipts_are_read_before_anything_is_counted(writer: CacheWriter) -> None:
    entries = writer.finished_units()
    corpus = Sizes([entries[unit].num_tokens for unit in range(8)])
    budget = Budget(sum(corpus.sizes), writer, corpus.count)
    assert budget.is_needed(7)
    assert not budget.is_needed(8)
    assert corpus.counted == [7]


def test_a_unit_is_decided_on_when_it_is_asked_for(no_receipts: CacheWriter) -> None:
    corpus = Sizes([10, 10, 10])
    budget = Budget(15, no_receipts, corpus.count)
    wanted = budget.wanted(ALL_UNITS)
    for unit in wanted:
        budget.note(unit, 10)
    assert corpus.counted == []
    assert list(wanted) == []
