"""An estimate is what comes of a small cache, scaled up; and nothing is left of that."""

import math
import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from stages.cache_teacher.estimate import FRAMING, estimate
from stages.cache_teacher.reporting.progress import CacheProgress
from stages.cache_teacher.teacher.teacher import Teacher
from tests.support.stage_one_runs import TEXTS, Bench
from tests.support.tiny import tiny_cache_config, write_fineweb_parquet


def test_estimated_bytes_are_those_of_the_cache(bench: Bench) -> None:
    manifest = bench.run(documents_per_unit=8, num_tokens=1000)
    config = tiny_cache_config(bench.teacher, bench.corpus, documents_per_unit=8)
    found = estimate(config, seconds=3600, report=lambda _: None)  # to the corpus's end
    shards = manifest.shards
    num_tokens = sum(shard.num_tokens for shard in shards)
    for name, size in found.column_bytes_per_token.items():
        held = sum(
            shard.num_bytes - sum(shard.statistics.column_bytes.values())
            if name == FRAMING
            else shard.statistics.column_bytes[name]
            for shard in shards
        )
        assert size == pytest.approx(held / num_tokens, rel=0.2, abs=2.0), name
    assert found.num_tokens == found.probe_tokens
    assert found.is_whole_corpus
    assert found.probe_tokens >= num_tokens
    assert found.tokens_per_document == pytest.approx(num_tokens / (8 * len(shards)), rel=0.3)
    assert found.seconds == pytest.approx(found.num_tokens / found.tokens_per_second)
    assert found.teacher_bytes == sum(size for size, _ in bench.open().attachments().values())


def test_an_estimate_ends_when_its_time_is_up(bench: Bench) -> None:
    config = tiny_cache_config(bench.teacher, bench.corpus, documents_per_unit=8)
    found = estimate(config, seconds=0.0, report=lambda _: None)
    whole = estimate(config, seconds=3600, report=lambda _: None)
    assert 0 < found.probe_tokens < whole.probe_tokens


class SlowModel:
    """A teacher whose forward passes after the first ``num_fast`` never end of themselves."""

    def __init__(self, patch: pytest.MonkeyPatch, num_fast: int, asleep: Any = None) -> None:
        self.num_rows: list[int] = []
        self._num_fast = num_fast
        forward = Teacher.forward

        def slow(
            this: Teacher, ids: Any, starts: Any, *, check: Any = None, **settings: Any
        ) -> Any:
            if check is None:
                return forward(this, ids, starts, **settings)  # the probe of a loaded teacher
            self.num_rows.append(len(ids))
            if len(self.num_rows) > num_fast:
                if asleep is not None:
                    asleep()
                for _ in range(6000):
                    check()
                    time.sleep(0.01)
                raise AssertionError("not stopped")
            return forward(this, ids, starts, check=check, **settings)

        patch.setattr(Teacher, "forward", slow)


class Clock:
    """The estimate's, which may be put forward by a minute."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._ahead = 0.0
        patch.setattr("stages.cache_teacher.estimate.time", self)
        patch.setattr("stages.cache_teacher.estimate._TICK_SECONDS", 0.01)

    def monotonic(self) -> float:
        return time.monotonic() + self._ahead

    def advance(self) -> None:
        self._ahead += 60


@pytest.mark.parametrize("num_passes", [1, 3])
def test_an_estimate_that_runs_out_of_time_within_a_unit_uses_its_rows(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, num_passes: int
) -> None:
    """No unit is finished. The rows that are say all there is to know."""
    config = tiny_cache_config(
        bench.teacher, bench.corpus, documents_per_unit=80, rows_per_forward=2
    )
    whole = estimate(config, seconds=3600, report=lambda _: None)
    clock = Clock(monkeypatch)
    SlowModel(monkeypatch, num_passes, asleep=clock.advance)
    found = estimate(config, seconds=60.0, report=lambda _: None)
    assert found.probe_tokens == num_passes * 2 * 32
    assert not found.is_whole_corpus
    assert found.tokens_per_document == whole.tokens_per_document
    assert found.tokens_per_second > 0
    for name, size in found.column_bytes_per_token.items():
        if name != FRAMING:
            expected = whole.column_bytes_per_token[name]
            assert size == pytest.approx(expected, rel=0.35, abs=0.1), name


def test_an_estimate_waits_for_the_first_forward_pass(bench: Bench) -> None:
    config = tiny_cache_config(bench.teacher, bench.corpus, documents_per_unit=80)
    reports: list[CacheProgress] = []
    found = estimate(config, seconds=0.0, report=reports.append)
    assert found.probe_tokens > 0
    assert [report.phase for report in reports][:2] == ["resolving", "loading teacher"]


@pytest.mark.parametrize(("asked", "num_rows"), [(None, 16), (64, 16), (3, 3)])
def test_forward_passes_are_small_on_a_cpu(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, asked: int | None, num_rows: int
) -> None:
    """512 positions, unless the settings say fewer."""
    slow = SlowModel(monkeypatch, num_fast=1)
    config = tiny_cache_config(
        bench.teacher, bench.corpus, documents_per_unit=80, rows_per_forward=asked
    )
    assert estimate(config, seconds=0.0, report=lambda _: None).probe_tokens == num_rows * 32
    assert slow.num_rows[0] == num_rows


def test_ctrl_c_ends_an_estimate(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    SlowModel(monkeypatch, num_fast=1, asleep=lambda: os.kill(os.getpid(), signal.SIGINT))
    config = tiny_cache_config(bench.teacher, bench.corpus, documents_per_unit=80)
    try:
        with pytest.raises(KeyboardInterrupt):
            estimate(config, seconds=3600, report=lambda _: None)
    finally:
        signal.signal(signal.SIGINT, before)
    names = {thread.name for thread in threading.enumerate()}
    assert not any(name.startswith(("unit-", "deadline", "encode")) for name in names)


def test_elapsed_time_is_reported_during_a_slow_forward_pass(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.cache_teacher.estimate._TICK_SECONDS", 0.01)
    SlowModel(monkeypatch, num_fast=1)
    reports: list[CacheProgress] = []
    config = tiny_cache_config(bench.teacher, bench.corpus, documents_per_unit=80)
    estimate(config, seconds=0.5, report=reports.append)
    last = reports[-1].tokens_cached_this_run
    idle = [report.seconds for report in reports if report.tokens_cached_this_run == last]
    assert len(set(idle)) > 3
    assert idle == sorted(idle)


def test_a_budget_below_one_unit_is_estimated_as_one_unit(bench: Bench) -> None:
    config = tiny_cache_config(bench.teacher, bench.corpus, documents_per_unit=10, num_tokens=1)
    found = estimate(config, seconds=0.0, report=lambda _: None)
    assert found.num_tokens == pytest.approx(10 * found.tokens_per_document, abs=1)
    assert not found.is_whole_corpus


def test_small_probe_units_do_not_change_the_number_of_shards(bench: Bench) -> None:
    config = tiny_cache_config(bench.teacher, bench.corpus, documents_per_unit=80)
    found = estimate(config, seconds=0.0, report=lambda _: None)
    assert found.documents_per_unit == 80
    assert found.num_shards == pytest.approx(found.num_documents / 80)


def test_the_estimated_validation_share_is_that_of_the_requested_units(bench: Bench) -> None:
    """Not of the probe's, which are smaller; nor is anything said of those."""
    config = tiny_cache_config(bench.teacher, bench.corpus, documents_per_unit=80, num_tokens=5000)
    messages: list[str] = []
    found = estimate(config, 0.0, report=lambda progress: messages.append(progress.message))
    num_units = math.ceil(found.num_shards)
    assert num_units <= 3
    assert found.shares.validation_share == pytest.approx(1 / num_units)
    assert "much more" in found.shares.advice or num_units == 1
    assert set(messages) == {""}


def test_the_temporary_cache_is_removed(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    estimate(tiny_cache_config(bench.teacher, bench.corpus), seconds=0.0, report=lambda _: None)
    assert list(place.iterdir()) == []


def test_a_corpus_too_short_for_a_row_cannot_be_estimated(bench: Bench, tmp_path: Path) -> None:
    corpus = write_fineweb_parquet(tmp_path / "short.parquet", TEXTS[:1])
    config = tiny_cache_config(bench.teacher, corpus, sequence_length=120)
    with pytest.raises(ValueError, match="no unit fills a row of 120 tokens"):
        estimate(config, seconds=0.0, report=lambda _: None)


def test_short_documents_are_packed_into_rows_for_the_estimate(
    bench: Bench, tmp_path: Path
) -> None:
    corpus = write_fineweb_parquet(tmp_path / "short.parquet", ["the cat."] * 400)
    config = tiny_cache_config(
        bench.teacher, corpus, documents_per_unit=200, sequence_length=120, rows_per_forward=1
    )
    assert estimate(config, seconds=0.0, report=lambda _: None).probe_tokens > 0
