"""Ranges of units, made apart and merged; and runs that have nothing to do."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

import cache_format
from cache_format.errors import StorageError
from cache_format.tools.merge import merge
from stages.cache_teacher.config import ALL_UNITS, UnitRange
from stages.cache_teacher.worker_share import WorkerShare
from tests.support.sample_cache import contents
from tests.support.stage_one_runs import Bench, Watch, shard_bytes


def units(text: str) -> UnitRange:
    return UnitRange.parse(text)


class TestUnitRange:
    @pytest.mark.parametrize(
        ("text", "first", "end"), [("0:1", 0, 1), ("100:200", 100, 200), ("7:", 7, None)]
    )
    def test_unit_ranges_are_parsed(self, text: str, first: int, end: int | None) -> None:
        assert UnitRange.parse(text) == UnitRange(first=first, end=end)

    @pytest.mark.parametrize("text", ["", ":", ":5", "5", "a:b", "-1:4", "1:2:3", " 1:2", "1.0:2"])
    def test_malformed_unit_ranges_are_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="expected FIRST:END, such as 100:200"):
            UnitRange.parse(text)

    @pytest.mark.parametrize("text", ["3:3", "3:2"])
    def test_a_range_without_units_of_the_corpus_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="end: must be more than the first unit"):
            UnitRange.parse(text)

    @pytest.mark.parametrize("setting", [{"first": 2**63}, {"end": 2**63}])
    def test_numbers_beyond_64_bits_are_refused(self, setting: dict[str, int]) -> None:
        (name,) = setting
        with pytest.raises(ValueError, match=f"^{name}: must be an integer of 64 bits"):
            UnitRange(**setting)

    def test_a_unit_range_lists_its_unit_numbers(self) -> None:
        assert list(units("3:6").numbers()) == [3, 4, 5]
        assert next(iter(ALL_UNITS.numbers())) == 0


def test_merged_parts_equal_the_whole_cache(bench: Bench) -> None:
    whole = bench.run("whole")
    assert len(whole.shards) == 8
    parts = ["0:3", "3:6", "6:"]
    for text in parts:
        manifest = bench.run(text.replace(":", "-"), units=units(text))
        assert not manifest.complete
    caches = [
        cache_format.open(bench.root / text.replace(":", "-"), allow_incomplete=True)
        for text in parts
    ]
    assert [len(cache.manifest.shards) for cache in caches] == [3, 3, 2]
    merged = merge(caches, bench.root / "merged")
    assert (merged.is_complete, merged.missing_units) == (False, ())  # who knows what follows?
    assert shard_bytes(bench.root / "merged") == shard_bytes(bench.root / "whole")
    assert bench.run("merged") == whole  # here the corpus is seen to end
    found = contents(bench.root / "merged")
    assert found == contents(bench.root / "whole")


def test_a_merged_cache_is_complete_at_the_budget_of_its_parts(bench: Bench) -> None:
    sizes = [entry.num_tokens for entry in bench.run("whole").shards]
    budget = sum(sizes[:5]) - 1
    bench.run("a", units=units("0:2"), num_tokens=budget)
    bench.run("b", units=units("2:5"), num_tokens=budget)
    caches = [cache_format.open(bench.root / name, allow_incomplete=True) for name in "ab"]
    assert merge(caches, bench.root / "merged").is_complete
    assert bench.open("merged").manifest.num_tokens_requested == budget


def test_a_part_from_unit_0_that_holds_the_budget_is_complete(bench: Bench) -> None:
    assert bench.run("a", units=units("0:100"), num_tokens=700).complete
    assert bench.run("b", units=units("0:100")).complete  # the corpus
    assert not bench.run("c", units=units("0:1"), num_tokens=700).complete


def test_a_range_without_end_stops_where_the_budget_should_be_reached(bench: Bench) -> None:
    """Those before it are taken to hold as much as it does; here the sizes differ by a third."""
    sizes = [entry.num_tokens for entry in bench.run("whole").shards]
    manifest = bench.run(units=units("3:"), num_tokens=sum(sizes[:6]))
    assert not manifest.complete
    assert [entry.unit for entry in manifest.shards] in ([3, 4], [3, 4, 5], [3, 4, 5, 6])
    first = bench.run("first", units=units("3:"), num_tokens=1)
    assert [entry.unit for entry in first.shards] == [3]


def test_a_range_with_an_end_is_made_regardless_of_the_budget(bench: Bench) -> None:
    manifest = bench.run(units=units("3:6"), num_tokens=1)
    assert [entry.unit for entry in manifest.shards] == [3, 4, 5]


def test_a_missing_range_of_units_completes_the_cache(bench: Bench) -> None:
    whole = bench.run("whole")
    bench.run(units=units("0:2"))
    bench.run(units=units("4:"))
    manifest = bench.run(units=units("2:4"))
    assert manifest == whole
    assert manifest.complete


def test_a_unit_range_after_the_corpus_is_refused(bench: Bench) -> None:
    with pytest.raises(ValueError, match="none of the units from 50 on fills a row"):
        bench.run(units=units("50:60"))


@pytest.mark.parametrize("text", ["2:5", "0:4"])
def test_the_estimate_of_a_range_ends_at_what_it_holds(bench: Bench, text: str) -> None:
    manifest = bench.run(units=units(text))
    held = sum(entry.num_tokens for entry in manifest.shards)
    assert bench.reports[-1].tokens_done == bench.reports[-1].tokens_total == held


def test_workers_share_a_cache_whichever_is_faster(bench: Bench) -> None:
    whole = bench.run("whole")
    for order in ([0, 1, 2], [2, 1, 0]):
        out = f"by-{order[0]}"
        for number in order:
            manifest = bench.run(out, units=WorkerShare(worker=number, num_workers=3))
            assert manifest.complete == (number == order[-1])
        assert contents(bench.root / out) == contents(bench.root / "whole")
    assert whole.complete


def test_a_worker_reports_units_that_others_have_not_finished(bench: Bench, watch: Watch) -> None:
    sizes = [entry.num_tokens for entry in bench.run("whole").shards]
    watch.since()
    budget = sum(sizes[:5]) - 1  # units 0 to 4
    bench.run(units=WorkerShare(worker=1, num_workers=3), num_tokens=budget)
    assert list(bench.reports[-1].missing_units) == [0, 2, 3]
    documents, teachers = watch.since()
    assert teachers == 1
    assert documents <= 60  # its two, and what it had to count near the end, each once
    bench.run(units=WorkerShare(worker=2, num_workers=3), num_tokens=budget)
    assert list(bench.reports[-1].missing_units) == [0, 3]
    # Worker 0 is lost; the plain command makes what it leaves.
    bench.run("alone", num_tokens=budget)
    assert bench.run(num_tokens=budget).complete
    assert contents(bench.root / "cache") == contents(bench.root / "alone")


def test_a_worker_without_units_writes_none_and_reports_the_missing(bench: Bench) -> None:
    manifest = bench.run(units=WorkerShare(worker=50, num_workers=60))
    assert manifest.shards == ()
    assert bench.reports[-1].missing_units == tuple(range(8))


class ReadOnly:
    """A file system that is mounted read-only below ``root``, as far as Python can see."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        opening = os.open

        def refuse(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
            if Path(path).is_relative_to(root) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return opening(path, flags, *arguments, **options)

        monkeypatch.setattr(os, "open", refuse)


def test_a_complete_read_only_cache_needs_no_write(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bench.run(num_tokens=700)
    before = contents(bench.root / "cache")
    ReadOnly(monkeypatch, bench.root / "cache")
    assert bench.run(num_tokens=700) == first
    assert bench.reports[-1].phase == "done"
    assert bench.run(num_tokens=10) == first
    with pytest.raises(StorageError, match="Read-only file system") as caught:
        bench.run(num_tokens=2000)
    assert ".tmp-" not in str(caught.value)
    assert contents(bench.root / "cache") == before


def test_the_end_of_the_corpus_is_known_on_a_read_only_cache(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bench.run()
    ReadOnly(monkeypatch, bench.root / "cache")
    assert bench.run(num_tokens=10**10) == first
    assert bench.reports[-1].phase == "corpus ended"


@pytest.mark.parametrize("name", ["teacher/config.json", "ranks.bin", "shard", "receipt"])
def test_missing_files_are_made_again_with_the_same_bytes(bench: Bench, name: str) -> None:
    manifest = bench.run()
    before = contents(bench.root / "cache")
    shard = manifest.shards[2]
    file = {"shard": shard.file, "receipt": f"receipts/{shard.unit:05d}.json"}.get(name, name)
    (bench.root / "cache" / file).unlink()
    assert bench.run() == manifest
    assert contents(bench.root / "cache") == before
