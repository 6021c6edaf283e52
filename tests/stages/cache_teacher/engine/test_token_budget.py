"""Which units a budget needs: the same set for all who ask, whatever they know."""

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import cache_format
from cache_format.writer import CacheWriter
from stages.cache_teacher.config import ALL_UNITS, UnitRange
from stages.cache_teacher.engine.token_budget import (
    TokenBudget,
    UnitSizes,
    is_needed,
    is_needed_of_part,
)
from stages.cache_teacher.worker_share import WorkerShare


class TestIsNeeded:
    @pytest.mark.parametrize(
        ("num_held", "num_unknown", "sizes", "expected"),
        [
            (0, 0, [], True),  # nothing comes before the first unit
            (99, 0, [50], True),
            (100, 0, [50], False),
            (100, 3, [50], False),  # the others can only add to it
            (11, 1, [10, 11], True),  # 11 + 8 · 11 = 99
            (12, 1, [10, 11], None),
            (0, 5, [], None),  # nothing is known of any size
            (0, 5, [0], None),
            (9, 6, [10] * 8, True),  # 9 + 1.5 · 10 · 6 = 99
            (10, 6, [10] * 8, None),
            (71, 1, [8, 12] * 4, True),  # 71 + 10 + 6 · 2.14 · √(1 + 1/8) = 94.6; 1.5 · 10 is less
            (77, 1, [8, 12] * 4, None),
        ],
    )
    def test_a_unit_is_needed_unless_known_sizes_reach_the_budget(
        self, num_held: int, num_unknown: int, sizes: list[int], expected: bool | None
    ) -> None:
        known = UnitSizes()
        for num_tokens in sizes:
            known.add(num_tokens)
        assert is_needed(100, num_held, num_unknown, known) is expected

    @pytest.mark.parametrize(
        ("unit", "end", "held", "expected"),
        [(4, 9, 10**9, True), (4, None, 10**9, True), (6, None, 33, True), (6, None, 34, False)],
    )
    def test_needed_units_of_a_range_follow_its_own_sizes(
        self, unit: int, end: int | None, held: int, expected: bool
    ) -> None:
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
    return CacheWriter(cache.storage, cache.spec, cache.shared)


@pytest.fixture
def no_receipts(writer: CacheWriter, monkeypatch: pytest.MonkeyPatch) -> CacheWriter:
    monkeypatch.setattr("cache_format.metadata.layout.receipt_units", lambda _: [])
    return writer


def documents_of(seed: int, num_units: int) -> list[int]:
    """Units of 512 documents, in rows of 512 tokens."""
    lengths = np.random.default_rng(seed).lognormal(6.0, 0.5, (num_units, 512))
    return [int(num_tokens) // 512 * 512 for num_tokens in lengths.sum(1)]


def anything_of(seed: int, num_units: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(60, 450) for _ in range(num_units)]


class Workers:
    """Workers of about one speed who have three units open each, and see each other's receipts."""

    def __init__(self, sizes: list[int], num_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self._sizes, self._num_tokens = sizes, num_tokens
        self._finished: list[int] = []
        self.made: list[int] = []
        self.num_counted: list[int] = []
        monkeypatch.setattr(
            "cache_format.metadata.layout.receipt_units", lambda _: list(self._finished)
        )
        monkeypatch.setattr(
            "stages.cache_teacher.engine.token_budget.read_receipt", self._read_receipt
        )

    def _read_receipt(self, storage: object, unit: int, *_: object) -> SimpleNamespace:
        return SimpleNamespace(entry=SimpleNamespace(num_tokens=self._sizes[unit]))

    def run(self, writer: CacheWriter, num_workers: int, rng: random.Random) -> None:
        corpora = [Sizes(self._sizes) for _ in range(num_workers)]
        budgets = [TokenBudget(self._num_tokens, writer, corpus.count) for corpus in corpora]
        wanted = [
            budget.needed_units(WorkerShare(worker=worker, num_workers=num_workers))
            for worker, budget in enumerate(budgets)
        ]
        units_open: list[list[int]] = [[] for _ in budgets]
        running = list(range(num_workers))
        while running:
            for worker in rng.sample(running, len(running)):
                if len(units_open[worker]) == 3:
                    self._finished.append(units_open[worker].pop(rng.randrange(3)))
                unit = next(wanted[worker], None)
                if unit is None:
                    running.remove(worker)
                    self._finished += units_open[worker]
                else:
                    self.made.append(unit)
                    units_open[worker].append(unit)
                    budgets[worker].record(unit, self._sizes[unit])
        self.num_counted = [len(corpus.counted) for corpus in corpora]


@pytest.mark.parametrize("sizes_of", [documents_of, anything_of])
@pytest.mark.parametrize("seed", range(3))
def test_each_of_many_workers_counts_few_units_and_only_near_the_budget(
    writer: CacheWriter,
    monkeypatch: pytest.MonkeyPatch,
    sizes_of: Callable[[int, int], list[int]],
    seed: int,
) -> None:
    sizes = sizes_of(seed, 1700)
    num_tokens = sum(sizes[:1430]) - 1
    workers = Workers(sizes, num_tokens, monkeypatch)
    workers.run(writer, 64, random.Random(seed))
    assert sorted(workers.made) == list(range(1430))
    print(max(workers.num_counted), sum(workers.num_counted) / 64)
    assert max(workers.num_counted) <= 5 * 64


@pytest.mark.parametrize("sizes_of", [documents_of, anything_of])
@pytest.mark.parametrize("seed", range(10))
def test_a_cluster_counts_few_units_and_only_near_the_budget(
    no_receipts: CacheWriter, sizes_of: Callable[[int, int], list[int]], seed: int
) -> None:
    """64 workers have three units open each, in the hands of one who knows what they finish."""
    rng = random.Random(seed)
    corpus = Sizes(sizes_of(seed, 1700))
    budget = TokenBudget(sum(corpus.sizes[:1430]) - 1, no_receipts, corpus.count)
    made, units_open = [], []
    for unit in budget.needed_units(ALL_UNITS):
        made.append(unit)
        units_open.append(unit)
        if len(units_open) == 3 * 64:
            ended = units_open.pop(rng.randrange(8))
            budget.record(ended, corpus.sizes[ended])
    assert made == list(range(1430))
    print(len(corpus.counted))
    assert min(unit for unit in corpus.counted if unit > 8) > 1430 - 6 * 64
    assert len(corpus.counted) <= 5 * 64


@pytest.mark.parametrize("sizes_of", [documents_of, anything_of])
@pytest.mark.parametrize("seed", range(20))
def test_no_unit_beyond_the_budget_is_needed_whatever_is_known(
    no_receipts: CacheWriter, sizes_of: Callable[[int, int], list[int]], seed: int
) -> None:
    rng = random.Random(seed)
    corpus = Sizes(sizes_of(seed, 60))
    num_tokens = rng.randrange(sum(corpus.sizes[:20]), sum(corpus.sizes))
    num_needed = len(corpus.needed(num_tokens))
    for _ in range(20):
        budget = TokenBudget(num_tokens, no_receipts, corpus.count)
        for unit in rng.sample(range(60), rng.randrange(60)):
            budget.record(unit, corpus.sizes[unit])
        assert budget.is_needed(num_needed - 1)
        assert not budget.is_needed(num_needed)


def test_growing_documents_may_add_units_but_leave_none_out(
    no_receipts: CacheWriter,
) -> None:
    corpus = Sizes([100] * 90 + [200] * 110)
    num_tokens = 10_000
    made = []
    for worker in range(4):
        budget = TokenBudget(num_tokens, no_receipts, corpus.count)
        for unit in budget.needed_units(WorkerShare(worker=worker, num_workers=4)):
            made.append(unit)
            budget.record(unit, corpus.sizes[unit])
    assert set(made) >= set(corpus.needed(num_tokens))
    assert len(made) <= len(corpus.needed(num_tokens)) + 4


def test_units_finished_by_other_workers_meanwhile_are_not_counted(
    writer: CacheWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Sizes([100] * 300)
    workers = Workers(corpus.sizes, 0, monkeypatch)

    def count(unit: int) -> int:
        workers._finished = list(range(200))
        return corpus.count(unit)

    budget = TokenBudget(20_000, writer, count)
    budget.record(200, 100)
    assert not budget.is_needed(200)
    assert corpus.counted == list(range(16))


def test_threads_may_record_units_concurrently(no_receipts: CacheWriter) -> None:
    """Two note the same units, as who made one and who has read it do."""

    class Slow(int):
        def __radd__(self, other: int) -> int:
            time.sleep(0.001)  # the other thread goes on here
            return other + int(self)

    budget = TokenBudget(1000, no_receipts, lambda unit: 0)
    both = threading.Barrier(2)

    def tell() -> None:
        both.wait(60)
        for unit in range(10):
            budget.record(unit, Slow(100))

    threads = [threading.Thread(target=tell) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.is_needed(9)
    assert not budget.is_needed(10)


@pytest.mark.parametrize("seed", range(20))
def test_workers_without_each_other_s_receipts_divide_the_needed_units(
    no_receipts: CacheWriter, seed: int
) -> None:
    rng = random.Random(seed)
    corpus = Sizes([rng.randrange(60, 450) for _ in range(60)])
    num_tokens = rng.randrange(1, sum(corpus.sizes))
    num_workers = rng.randrange(1, 9)
    made = []
    for worker in range(num_workers):
        budget = TokenBudget(num_tokens, no_receipts, corpus.count)
        for unit in budget.needed_units(WorkerShare(worker=worker, num_workers=num_workers)):
            made.append(unit)
            budget.record(unit, corpus.sizes[unit])
    assert sorted(made) == corpus.needed(num_tokens)


def test_far_from_the_budget_no_units_of_other_workers_are_counted(
    no_receipts: CacheWriter,
) -> None:
    corpus = Sizes([100] * 1000)
    budget = TokenBudget(90_000, no_receipts, corpus.count)
    wanted = budget.needed_units(WorkerShare(worker=3, num_workers=4))
    assert next(wanted) == 3
    assert corpus.counted == [3]  # its own, for the scale
    for unit in wanted:
        budget.record(unit, 100)
        if unit > 100:
            break
    assert corpus.counted == [3]


def test_no_unit_is_counted_twice(no_receipts: CacheWriter) -> None:
    corpus = Sizes([100] * 50)
    budget = TokenBudget(3000, no_receipts, corpus.count)
    for unit in budget.needed_units(WorkerShare(worker=1, num_workers=2)):
        budget.record(unit, 100)
    assert sorted(corpus.counted) == sorted(set(corpus.counted))
    assert set(corpus.counted) - {1} <= set(range(0, 30, 2))


def test_receipts_are_read_before_any_unit_is_counted(writer: CacheWriter) -> None:
    entries = writer.finished_units()
    corpus = Sizes([entries[unit].num_tokens for unit in range(8)])
    budget = TokenBudget(sum(corpus.sizes), writer, corpus.count)
    assert budget.is_needed(7)
    assert not budget.is_needed(8)
    assert corpus.counted == [7]


def test_whether_a_unit_is_needed_is_decided_when_it_is_requested(no_receipts: CacheWriter) -> None:
    corpus = Sizes([10, 10, 10])
    budget = TokenBudget(15, no_receipts, corpus.count)
    wanted = budget.needed_units(ALL_UNITS)
    for unit in wanted:
        budget.record(unit, 10)
    assert corpus.counted == []
    assert list(wanted) == []
