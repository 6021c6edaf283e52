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


def test_a_cache_is_complete_when_it_holds_its_token_budget(entries: dict[int, ShardEntry]) -> None:
    num_tokens = sum(entry.num_tokens for entry in entries.values())
    assert is_complete(entries, num_tokens, lambda unit: pytest.fail("asked in vain"))
    assert not is_complete(entries, num_tokens + 1, lambda unit: True)


def test_below_the_budget_a_cache_is_complete_at_the_end_of_the_corpus(
    entries: dict[int, ShardEntry],
) -> None:
    asked = []

    def has_unit(unit: int) -> bool:
        asked.append(unit)
        return False

    assert is_complete(entries, 10**9, has_unit)
    assert asked == [len(entries)]


def test_units_after_a_missing_unit_do_not_count(entries: dict[int, ShardEntry]) -> None:
    num_tokens = sum(entry.num_tokens for entry in entries.values())
    del entries[1]
    assert not is_complete(entries, num_tokens, lambda unit: True)
    assert is_complete(entries, entries[0].num_tokens, lambda unit: True)


def test_a_cache_without_units_is_never_complete() -> None:
    assert not is_complete({}, 0, lambda unit: False)
