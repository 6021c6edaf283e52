"""What a second run does: goes on, extends, or nothing; and what is told while a run goes on."""

from typing import Any

import pytest
import torch

import cache_format
from cache_format.metadata.manifest import Manifest
from cache_format.metadata.splits import SPLITS
from cache_format.tools.verify import verify
from cache_format.writer import CacheWriter
from stages.cache_teacher.engine import filling
from stages.cache_teacher.engine.unit_maker import UNITS_IN_FLIGHT
from stages.cache_teacher.teacher.teacher import Teacher
from tests.support.stage_one_runs import Bench, Watch, shard_bytes


def test_a_budget_overshoots_by_less_than_a_unit_and_can_grow_and_shrink(
    bench: Bench, watch: Watch
) -> None:
    whole = bench.run("whole")
    sizes = [entry.num_tokens for entry in whole.shards]
    assert watch.since() == (80, 1)

    budget = sum(sizes[:2]) + 1
    first = bench.run(num_tokens=budget)
    assert first.complete
    assert (len(first.shards), first.num_tokens_requested) == (3, budget)
    assert watch.since() == (30, 1)

    extended = bench.run(num_tokens=sum(sizes[:5]))
    assert len(extended.shards) == 5
    assert watch.since() == (20, 1)  # only what was missing

    again = bench.run(num_tokens=sum(sizes[:5]))
    assert again == extended
    assert watch.since() == (0, 0)

    shorter = bench.run(num_tokens=1)
    assert shorter.complete
    assert shorter.shards == extended.shards
    assert watch.since() == (0, 0)

    bench.run()
    assert watch.since() == (30, 1)
    assert shard_bytes(bench.root / "cache") == shard_bytes(bench.root / "whole")

    bench.run()  # the corpus has ended: nothing is left to do
    assert watch.since() == (0, 0)
    assert bench.reports[-1].phase == "corpus ended"
    assert verify(bench.open(), lambda *_: None) == []


def test_only_missing_units_are_made_again(bench: Bench, watch: Watch) -> None:
    manifest = bench.run()
    before = shard_bytes(bench.root / "cache")
    watch.since()
    (bench.root / "cache" / manifest.shards[3].file).unlink()
    assert bench.run() == manifest
    assert watch.since() == (10, 1)
    assert shard_bytes(bench.root / "cache") == before


def test_an_interrupted_run_resumes(
    bench: Bench, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run("whole")
    watch.since()
    forward = Teacher.forward
    num_calls = 0

    def failing(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 15:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "forward", failing)
        with pytest.raises(torch.OutOfMemoryError):  # as it is: the command line explains it
            bench.run()
    documents, _ = watch.since()
    cut_short = cache_format.open(bench.root / "cache", allow_incomplete=True).manifest
    assert 0 < len(cut_short.shards) < 8
    num_begun = documents // 10 - len(cut_short.shards)
    assert 1 <= num_begun <= UNITS_IN_FLIGHT
    bench.run()
    assert watch.since() == (80 - 10 * len(cut_short.shards), 1)
    assert shard_bytes(bench.root / "cache") == shard_bytes(bench.root / "whole")


def test_progress_counts_what_the_cache_holds(bench: Bench) -> None:
    manifest = bench.run(num_tokens=1000)
    phases = [report.phase for report in bench.reports]
    assert list(dict.fromkeys(phases)) == ["resolving", "loading teacher", "caching", "done"]
    done = [report.tokens_done for report in bench.reports]
    assert done == sorted(done)
    last = bench.reports[-1]
    assert last.tokens_total == 1000
    assert last.tokens_done == last.tokens_cached_this_run
    assert last.tokens_done == sum(entry.num_tokens for entry in manifest.shards)
    assert last.bytes_written == sum(entry.num_bytes for entry in manifest.shards)
    assert last.documents == sum(entry.num_documents for entry in manifest.shards)
    assert last.corpus_position in {entry.corpus_position for entry in manifest.shards}
    assert last.units_made == len(manifest.shards)
    assert last.bytes_held == last.bytes_written
    assert last.device_wait_share is not None
    assert 0 < last.device_wait_share < 1
    assert last.mfu is None  # a processor's peak is not known
    assert {report.unit for report in bench.reports} == {entry.unit for entry in manifest.shards}
    assert len(done) > sum(entry.num_rows for entry in manifest.shards)

    bench.run(num_tokens=2000)
    assert bench.reports[-1].tokens_cached_this_run < bench.reports[-1].tokens_done


def test_the_manifest_is_published_during_the_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    published: list[int] = []
    publish = CacheWriter.publish_manifest

    def recording(self: Any, num_tokens: int, complete: bool) -> Manifest:
        manifest = publish(self, num_tokens, complete)
        published.append(len(manifest.shards))
        assert manifest.complete == complete
        return manifest

    monkeypatch.setattr(CacheWriter, "publish_manifest", recording)
    monkeypatch.setattr(filling, "_MANIFEST_SECONDS", 0.0)
    bench.run()
    assert published == sorted(published)
    assert published[0] < len(published) - 1 == published[-1] == 8


def test_an_interrupted_extension_leaves_the_complete_cache_unchanged(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bench.run(num_tokens=700)
    write_unit = CacheWriter.write_unit
    calls: list[int] = []

    def breaking(self: Any, unit: int, rows: Any, **facts: Any) -> Any:
        calls.append(unit)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write_unit(self, unit, rows, **facts)

    monkeypatch.setattr(CacheWriter, "write_unit", breaking)
    monkeypatch.setattr(filling, "_MANIFEST_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    assert bench.open().manifest == before
    monkeypatch.setattr(CacheWriter, "write_unit", write_unit)
    assert len(bench.run().shards) == 8


def test_divided_rows_stay_in_their_split_when_extended(bench: Bench) -> None:
    """The teacher agrees with them, and a longer budget adds to both splits at their ends."""
    bench.run(num_tokens=1, validation_split="rows")
    first = bench.open()
    assert len(first.manifest.shards) == 1
    bench.run(num_tokens=1000, validation_split="rows")
    extended = bench.open()
    for split in SPLITS:
        held = [row.token_ids.tolist() for _, row in first.iter_rows(split)]
        rows = [row.token_ids.tolist() for _, row in extended.iter_rows(split)]
        assert 0 < len(held) < len(rows)
        assert rows[: len(held)] == held
    assert verify(extended) == []
