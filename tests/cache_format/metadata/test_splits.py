"""Which rows are validation: all of some units, or the last rows of every unit."""

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cache_format
from cache_format.errors import CorruptFileError
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.splits import SPLITS, rows_of_split
from cache_format.tools.merge import merge
from cache_format.tools.parquet_export import Export, export_parquet
from cache_format.tools.verify import verify
from cache_format.writer import CacheWriter
from tests.support.sample_cache import (
    ROWS_OF_UNIT,
    assert_decoded,
    fill,
    reseal,
    sample_shared,
    sample_spec,
    unit_rows,
    write_sample_cache,
)

UNITS = sample_spec()
ROWS = sample_spec(validation_split="rows")
VALIDATION_ROWS = {0: [2], 1: [3, 4], 2: [], 3: [1]}
"""Of ``ROWS_OF_UNIT``, n = 3: ⌈3/3⌉ − 0, ⌈10/3⌉ − ⌈5/3⌉, none, ⌈8/3⌉ − ⌈6/3⌉."""


@pytest.fixture
def divided(tmp_path: Path) -> Path:
    """A cache whose rows are divided."""
    write_sample_cache(tmp_path / "divided", ROWS)
    return tmp_path / "divided"


def specs() -> st.SearchStrategy[CacheSpec]:
    every = st.integers(2, 100) | st.integers(2, 10**6)
    of_both = st.sampled_from([UNITS, ROWS])
    return st.builds(lambda spec, n: replace(spec, validation_every=n), of_both, every)


@given(specs(), st.integers(0, 10**6), st.integers(0, 10**5))
def test_every_row_is_in_exactly_one_split(spec: CacheSpec, unit: int, num_rows: int) -> None:
    train, validation = (rows_of_split(spec, split, unit, num_rows) for split in SPLITS)
    assert SPLITS == ("train", "validation")
    assert [*train, *validation] == list(range(num_rows))


@given(st.integers(2, 10**6), st.integers(0, 10**6), st.integers(0, 10**5))
def test_validation_has_as_many_rows_as_the_format_says(
    every: int, unit: int, num_rows: int
) -> None:
    spec = replace(ROWS, validation_every=every)
    found = len(rows_of_split(spec, "validation", unit, num_rows))
    share = Fraction(num_rows, every)
    assert found == math.ceil((unit + 1) * share) - math.ceil(unit * share)
    assert found in (math.floor(share), math.ceil(share))
    assert spec.split_of(unit) is None


@given(st.integers(2, 60), st.integers(0, 50), st.integers(0, 200))
def test_n_units_of_one_size_have_one_row_in_n(every: int, first: int, num_rows: int) -> None:
    spec = replace(ROWS, validation_every=every)
    units = range(first, first + every)
    found = sum(len(rows_of_split(spec, "validation", unit, num_rows)) for unit in units)
    assert found == num_rows


@given(st.integers(2, 10**6), st.integers(1, 10**5))
def test_unit_0_has_both_splits_if_it_has_two_rows(every: int, num_rows: int) -> None:
    spec = replace(ROWS, validation_every=every)
    assert rows_of_split(spec, "validation", 0, num_rows)
    assert bool(rows_of_split(spec, "train", 0, num_rows)) == (num_rows > 1)


@given(st.integers(2, 100), st.integers(0, 10**6))
def test_units_of_one_row_are_divided_as_whole_units(every: int, unit: int) -> None:
    of_rows, of_units = (replace(spec, validation_every=every) for spec in (ROWS, UNITS))
    for split in SPLITS:
        assert rows_of_split(of_rows, split, unit, 1) == rows_of_split(of_units, split, unit, 1)


def test_the_reader_gives_the_rows_of_each_split(divided: Path) -> None:
    cache = cache_format.open(divided)
    for split in SPLITS:
        expected = [
            (unit, row)
            for unit in ROWS_OF_UNIT
            for number, row in enumerate(unit_rows(unit, ROWS))
            if (number in VALIDATION_ROWS[unit]) == (split == "validation")
        ]
        found = list(cache.iter_rows(split))
        assert cache.num_rows(split) == cache.manifest.num_rows(split) == len(expected)
        assert [unit for unit, _ in found] == [unit for unit, _ in expected]
        for (_, row), (_, given_row) in zip(found, expected, strict=True):
            assert_decoded(row, given_row, ROWS)
        with pytest.raises(IndexError):
            cache.read_row(split, len(expected))
        assert [entry.unit for entry in cache.shards(split)] == list(ROWS_OF_UNIT)
        numbers = {entry.unit: list(cache.rows_of(split, entry)) for entry in cache.shards(split)}
        assert (numbers == VALIDATION_ROWS) == (split == "validation")


def test_the_shards_are_those_of_a_cache_that_divides_units(divided: Path, root: Path) -> None:
    """What is written of a unit's rows does not depend on how they are divided."""
    for unit, num_rows in ROWS_OF_UNIT.items():
        one, other = (cache_format.open(path).manifest.shards[unit] for path in (divided, root))
        assert one.num_rows == other.num_rows == num_rows
        assert one.statistics == other.statistics
        assert (one.split, other.split) == (None, UNITS.split_of(unit))


def test_a_unit_of_one_split_is_refused_where_rows_are_divided(divided: Path) -> None:
    reseal(divided / "manifest.json", lambda fields: fields["shards"][1].update(split="train"))
    with pytest.raises(CorruptFileError, match="unit 1: wrong split"):
        cache_format.open(divided)


def test_a_unit_without_a_split_is_refused_where_units_are_divided(root: Path) -> None:
    reseal(root / "manifest.json", lambda fields: fields["shards"][1].pop("split"))
    with pytest.raises(CorruptFileError, match="unit 1: wrong split"):
        cache_format.open(root)


def test_write_order_and_later_units_move_no_row_to_another_split(tmp_path: Path) -> None:
    """Units 3, 0 and 1 first; then the others, as a longer budget makes them."""

    def by_unit() -> dict[str, dict[int, list[list[int]]]]:
        cache = cache_format.open(tmp_path, allow_incomplete=True)
        found: dict[str, dict[int, list[list[int]]]] = {}
        for split in SPLITS:
            for unit, row in cache.iter_rows(split):
                found.setdefault(split, {}).setdefault(unit, []).append(row.token_ids.tolist())
        return found

    writer = CacheWriter.create_or_open(tmp_path, ROWS, sample_shared())
    fill(writer, [1])
    alone = by_unit()
    fill(writer, [3, 0])
    writer.publish_manifest(num_tokens_requested=20, complete=False)
    some = by_unit()
    fill(writer, [2])
    writer.publish_manifest(num_tokens_requested=120, complete=True)
    everything = by_unit()
    for split in SPLITS:
        assert alone[split][1] == some[split][1]
        assert some[split].items() <= everything[split].items()


def test_merged_parts_keep_their_splits(divided: Path, tmp_path: Path) -> None:
    for name, units in (("a", [0, 2]), ("b", [1, 3])):
        writer = CacheWriter.create_or_open(tmp_path / name, ROWS, sample_shared())
        fill(writer, units)
        writer.publish_manifest(num_tokens_requested=120, complete=False)
    parts = [cache_format.open(tmp_path / name, allow_incomplete=True) for name in "ab"]
    merge(parts, tmp_path / "merged")
    merged = cache_format.open(tmp_path / "merged", allow_incomplete=True)
    assert merged.manifest.shards == cache_format.open(divided).manifest.shards
    assert verify(merged) == []


def test_export_writes_a_divided_shard_into_both_split_directories(
    divided: Path, tmp_path: Path
) -> None:
    cache = cache_format.open(divided)
    out = tmp_path / "out"
    done: list[tuple[int, int]] = []
    export_parquet(cache, out, Export(), report=lambda *now: done.append(now))
    assert done[-1] == (sum(ROWS_OF_UNIT.values()) * ROWS.sequence_length,) * 2
    for unit, numbers in VALIDATION_ROWS.items():
        for split in SPLITS:
            path = out / split / f"{unit:05d}.parquet"
            is_in = [(n in numbers) == (split == "validation") for n in range(ROWS_OF_UNIT[unit])]
            expected = [n for n, wanted in enumerate(is_in) if wanted]
            assert path.exists() == bool(expected)
            if not expected:
                continue
            table = pq.read_table(path)
            assert table["row"].to_pylist() == expected
            rows = unit_rows(unit, ROWS)
            ids = [rows[n].token_ids.tolist() for n in expected]
            assert table["token_ids"].to_pylist() == ids
    assert export_parquet(cache, out, Export())  # all there already
