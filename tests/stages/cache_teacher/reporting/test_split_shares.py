"""What share is validation is known before the work, and said with what to change."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cache_format
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.splits import rows_of_split
from stages.cache_teacher.reporting.split_shares import (
    SplitShares,
    expectation,
    expected_shares,
    shares_of,
)
from tests.support.sample_cache import sample_spec, write_sample_cache
from tests.support.stage_one_runs import Bench
from tests.support.tiny import tiny_texts, write_fineweb_parquet

UNITS = sample_spec(validation_every=50)
ROWS = sample_spec(validation_every=50, validation_split="rows")


@given(st.sampled_from([UNITS, ROWS]), st.integers(2, 9), st.integers(1, 30), st.integers(1, 40))
def test_equal_units_have_the_expected_validation_share(
    of_either: CacheSpec, every: int, num_units: int, num_rows: int
) -> None:
    spec = replace(of_either, validation_every=every)
    found = expected_shares(spec, num_units, num_rows * spec.sequence_length)
    assert found.num_rows == num_units * num_rows
    assert found.num_validation_rows == sum(
        len(rows_of_split(spec, "validation", unit, num_rows)) for unit in range(num_units)
    )


def test_split_shares_count_the_rows_of_a_cache(tmp_path: Path) -> None:
    write_sample_cache(tmp_path / "units", sample_spec())
    write_sample_cache(tmp_path / "rows", sample_spec(validation_split="rows"))
    for name, num_validation_rows in (("units", 5), ("rows", 4)):
        shares = shares_of(cache_format.open(tmp_path / name).manifest)
        assert (shares.num_rows, shares.num_validation_rows) == (10, num_validation_rows)
        assert shares.validation_share == num_validation_rows / 10


@pytest.mark.parametrize(
    ("num_validation_rows", "advice"),
    [
        (20, ""),
        (70, ""),
        (71, "much more than 1 in 50"),
        (999, "much more than 1 in 50"),
        (1000, "nothing to train on"),
    ],
)
def test_too_large_a_validation_share_gets_advice(num_validation_rows: int, advice: str) -> None:
    for spec, remedy in (
        (UNITS, 'cache_teacher.validation_split = "rows"'),
        (ROWS, "sequence_length"),
    ):
        found = SplitShares(
            spec=spec, num_rows=1000, num_validation_rows=num_validation_rows
        ).advice
        assert advice in found
        assert bool(found) == bool(advice)
        assert not advice or remedy in found


def test_a_cache_without_rows_gets_no_advice() -> None:
    shares = SplitShares(spec=UNITS, num_rows=0, num_validation_rows=0)
    assert (shares.validation_share, shares.advice) == (0.0, "")


def test_too_few_units_are_warned_of_and_many_are_not() -> None:
    few = expectation(UNITS, 4, 12_000.4)
    assert few.startswith("about 4 units of 12,000 tokens; validation is 25.0% of the rows. That ")
    assert expectation(UNITS, 1, 24).startswith("about 1 unit of 24 tokens; validation is 100.0% ")
    assert expectation(UNITS, 1000, 24).endswith("validation is 2.0% of the rows")
    assert expectation(ROWS, 1, 24_000).endswith("validation is 2.0% of the rows")


class TestWarningDuringARun:
    """Eight units of ten documents of the tests' corpus."""

    def messages(self, bench: Bench) -> list[str]:
        return [report.message for report in bench.reports if report.message]

    def test_the_warning_comes_once_before_anything_is_cached(self, bench: Bench) -> None:
        bench.run(validation_every=50)
        (message,) = self.messages(bench)
        assert message.startswith("about 8 units of ")  # the corpus ends long before the budget
        assert "validation is 12.5% of the rows. That is much more than 1 in 50" in message
        (said,) = (report for report in bench.reports if report.message)
        assert said.tokens_cached_this_run == said.tokens_done == 0

    def test_the_warning_depends_on_the_budget_and_all_known_units(self, bench: Bench) -> None:
        manifest = bench.run(num_tokens=1400)
        (message,) = self.messages(bench)
        assert message.startswith(f"about {len(manifest.shards)} units of ")
        assert len(manifest.shards) < 8
        bench.run()
        (message,) = self.messages(bench)
        assert message.startswith("about 8 units of ")
        bench.run()  # nothing is left to do
        assert self.messages(bench) == []

    def test_unopened_files_are_assumed_to_be_like_the_first(self, bench: Bench) -> None:
        for number in range(3):
            write_fineweb_parquet(bench.root / f"parts/{number}.parquet", tiny_texts(20))
        bench.corpus = bench.root / "parts"
        bench.run()
        (message,) = self.messages(bench)
        assert message.startswith("about 6 units of ")
