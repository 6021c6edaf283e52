"""The rule by which a cache is complete."""

from pathlib import Path

import pytest

import cache_format
from cache_format.metadata.completeness import is_complete
from cache_format.metadata.manifest import ShardEntry
from tests.support.sample_cache import sample_spec, write_sample_cache


@pytest.fixture
def entries(tmp_path: Path) -> dict[int, ShardEntry]:
    write_sample_cache(tmp_path, sample_spec())
    return {entry.unit: entry for entry in cache_format.open(tmp_path).manifest.shards}


def test_the_budget_decides(entries: dict[int, ShardEntry]) -> None:
    num_tokens = sum(entry.num_tokens for entry in entries.values())
    assert is_complete(entries, num_tokens, lambda unit: pytest.fail("asked in vain"))
    assert not is_complete(entries, num_tokens + 1, lambda unit: True)


def test_below_it_the_end_of_the_corpus_does(entries: dict[int, ShardEntry]) -> None:
    asked = []

    def has_unit(unit: int) -> bool:
        asked.append(unit)
        return False

    assert is_complete(entries, 10**9, has_unit)
    assert asked == [len(entries)]


def test_what_comes_after_a_missing_unit_does_not_count(entries: dict[int, ShardEntry]) -> None:
    num_tokens = sum(entry.num_tokens for entry in entries.values())
    del entries[1]
    assert not is_complete(entries, num_tokens, lambda unit: True)
    assert is_complete(entries, entries[0].num_tokens, lambda unit: True)


def test_nothing_is_never_complete() -> None:
    assert not is_complete({}, 0, lambda unit: False)
