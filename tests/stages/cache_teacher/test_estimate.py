"""An estimate is what comes of a small cache, scaled up; and nothing is left of that."""

import math
import tempfile
from pathlib import Path

import pytest

from stages.cache_teacher.estimate import FRAMING, estimate
from tests.stages.cache_teacher.bench import TEXTS, Bench
from tests.tiny import tiny_config, write_fineweb_parquet


def test_bytes_are_those_of_the_cache(bench: Bench) -> None:
    manifest = bench.run(documents_per_unit=8, num_tokens=1000)
    config = tiny_config(bench.teacher, bench.corpus, documents_per_unit=8)
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


def test_it_ends_when_the_time_is_up(bench: Bench) -> None:
    config = tiny_config(bench.teacher, bench.corpus, documents_per_unit=8)
    found = estimate(config, seconds=0.0, report=lambda _: None)
    whole = estimate(config, seconds=3600, report=lambda _: None)
    assert 0 < found.probe_tokens < whole.probe_tokens


def test_less_than_a_unit_is_a_unit(bench: Bench) -> None:
    config = tiny_config(bench.teacher, bench.corpus, documents_per_unit=10, num_tokens=1)
    found = estimate(config, seconds=0.0, report=lambda _: None)
    assert found.num_tokens == pytest.approx(10 * found.tokens_per_document, abs=1)
    assert not found.is_whole_corpus


def test_units_of_the_probe_are_small(bench: Bench) -> None:
    config = tiny_config(bench.teacher, bench.corpus, documents_per_unit=80)
    found = estimate(config, seconds=0.0, report=lambda _: None)
    assert found.documents_per_unit == 80
    assert found.num_shards == pytest.approx(found.num_documents / 80)


def test_the_share_of_validation_is_that_of_the_units_asked_for(bench: Bench) -> None:
    """Not of the probe's, which are smaller; nor is anything said of those."""
    config = tiny_config(bench.teacher, bench.corpus, documents_per_unit=80, num_tokens=5000)
    messages: list[str] = []
    found = estimate(config, 0.0, report=lambda progress: messages.append(progress.message))
    num_units = math.ceil(found.num_shards)
    assert num_units <= 3
    assert found.shares.validation_share == pytest.approx(1 / num_units)
    assert "much more" in found.shares.advice or num_units == 1
    assert set(messages) == {""}


def test_nothing_is_left(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    estimate(tiny_config(bench.teacher, bench.corpus), seconds=0.0, report=lambda _: None)
    assert list(place.iterdir()) == []


def test_what_cannot_be_cached_cannot_be_estimated(bench: Bench, tmp_path: Path) -> None:
    corpus = write_fineweb_parquet(tmp_path / "short.parquet", TEXTS[:1])
    config = tiny_config(bench.teacher, corpus, sequence_length=120)
    with pytest.raises(ValueError, match="no unit fills a row of 120 tokens"):
        estimate(config, seconds=0.0, report=lambda _: None)


def test_short_documents_fill_a_row_together(bench: Bench, tmp_path: Path) -> None:
    corpus = write_fineweb_parquet(tmp_path / "short.parquet", ["the cat."] * 400)
    config = tiny_config(
        bench.teacher, corpus, documents_per_unit=200, sequence_length=120, rows_per_forward=1
    )
    assert estimate(config, seconds=0.0, report=lambda _: None).probe_tokens > 0
