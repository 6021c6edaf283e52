"""Each bound from both sides; a cache that was written here has no impossible numbers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cache_format
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.tools.impossible_numbers import impossible_numbers
from cache_format.writer import CacheWriter
from tests.support.sample_cache import (
    TARGETS,
    hidden_targets,
    sample_row,
    sample_shared,
    sample_spec,
    top_k_hidden_targets,
    write_sample_cache,
)


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("with_sketch", [True, False])
def test_what_is_written_here_is_possible(
    tmp_path: Path, targets: TargetSpec, with_sketch: bool
) -> None:
    spec = write_sample_cache(tmp_path, sample_spec(targets=targets, with_sketch=with_sketch))
    for entry in cache_format.open(tmp_path).manifest.shards:
        assert impossible_numbers(entry, spec) == []


def test_the_largest_coefficients_are_possible(tmp_path: Path) -> None:
    """Rows of coefficients that are as improbable as can be, and the bound from both sides."""
    spec = sample_spec(targets=hidden_targets(), with_sketch=False, sequence_length=20_000)
    row = sample_row(0, spec)
    assert row.coefficients is not None
    random = np.random.default_rng(0)
    signs = random.choice(np.array([-32_767, 32_767], np.int16), row.coefficients.shape)
    writer = CacheWriter.create_or_open(tmp_path, spec, sample_shared(spec))
    writer.write_unit(1, [replace(row, coefficients=signs)], num_documents=1)
    writer.publish_manifest(1, complete=True)
    (entry,) = cache_format.open(tmp_path).manifest.shards
    assert impossible_numbers(entry, spec) == []
    assert entry.num_bytes > 20_000 * 6 * 2
    # 64 KiB twice, and 20,000 positions of 64 · 16 bytes and 6 coefficients of 8.
    largest = 2 * 65_536 + 20_000 * (64 * 16 + 6 * 8)
    assert impossible_numbers(replace(entry, num_bytes=largest), spec) == []
    (problem,) = impossible_numbers(replace(entry, num_bytes=largest + 1), spec)
    assert problem.startswith("num_bytes is 21,571,073, expected 0 to 21,571,072")


@pytest.mark.parametrize(
    ("name", "possible", "impossible"),
    [("num_kept", 25.0, 25.1), ("num_kept", 5.0, 4.9), ("num_nonzero", 30.0, 30.1)],
)
def test_the_sums_of_kept_ids_beside_coefficients(
    tmp_path: Path, name: str, possible: float, impossible: float
) -> None:
    spec = write_sample_cache(tmp_path, sample_spec(targets=top_k_hidden_targets()))
    entry = cache_format.open(tmp_path).manifest.shards[1]
    sums = {"num_kept": 9.0, "kept_mass": 4.5, "next_logprob": -9.0, "num_nonzero": 20.0}
    for value, num_problems in ((possible, 0), (impossible, 1)):
        statistics = replace(entry.statistics, num_scored=5, sums=sums | {name: value})
        assert len(impossible_numbers(replace(entry, statistics=statistics), spec)) == num_problems
    of_one_kind = replace(entry.statistics, num_scored=5, sums={"num_nonzero": 20.0})
    assert impossible_numbers(replace(entry, statistics=of_one_kind), spec) != []


@pytest.mark.parametrize(("possible", "impossible"), [(30.0, 30.1), (0.0, -0.1)])
def test_the_sum_of_coefficients_that_are_not_0(
    tmp_path: Path, possible: float, impossible: float
) -> None:
    spec = write_sample_cache(tmp_path, sample_spec(targets=hidden_targets()))
    entry = cache_format.open(tmp_path).manifest.shards[1]
    for value, num_problems in ((possible, 0), (impossible, 1)):
        statistics = replace(entry.statistics, num_scored=5, sums={"num_nonzero": value})
        assert len(impossible_numbers(replace(entry, statistics=statistics), spec)) == num_problems


@pytest.mark.parametrize(
    ("field", "possible", "impossible"),
    [
        ("num_documents", 4, 5),
        ("num_documents", 1, 0),
        ("num_skipped_documents", 4, 5),
        ("num_skipped_documents", 0, -1),
        ("num_dropped_tokens", 12, 13),
        ("num_dropped_tokens", 0, -1),
        ("num_tokens", 60, 61),
        ("num_bytes", 5 * 16, 5 * 16 - 1),
        # 64 KiB, and for each of 5 rows 64 KiB and 12 positions of (5 + 64) · 16 + 8 · 8 bytes.
        ("num_bytes", 463_296, 463_297),
        ("num_scored", 60, 61),
        ("sums.num_kept", 5, 26),
        ("sums.next_logprob", 0.0, 0.5),
        ("sums.next_logprob", -65504.0, -1e9),
        ("sums.kept_mass", 5.0, 5.1),
        ("sums.kept_mass", 0.0, -0.5),
        ("sums.kept_mass", 0.0, None),
        ("column_bytes", {"kept": 0}, {"kept": -1}),
    ],
)
def test_each_number(root: Path, field: str, possible: object, impossible: object) -> None:
    entry = cache_format.open(root).manifest.shards[1]
    name = field.removeprefix("sums.")
    is_sum = name != field
    sums = dict(entry.statistics.sums)
    statistics = replace(entry.statistics, sums={**sums, "num_kept": 61.0}, column_bytes={})
    if is_sum or field == "column_bytes":
        sums = {"num_kept": 5.0, "kept_mass": 1.0, "next_logprob": -1.0}
        statistics = replace(statistics, num_scored=5, sums=sums)

    def found(value: Any) -> list[str]:
        changed = replace(entry, statistics=statistics)
        if is_sum:
            of_kind = {**sums, name: value}
            if value is None:
                del of_kind[name]
            changed = replace(entry, statistics=replace(statistics, sums=of_kind))
        elif hasattr(statistics, field):
            changed = replace(entry, statistics=replace(statistics, **{field: value}))
        else:
            changed = replace(changed, **{field: value})
        problems = impossible_numbers(changed, sample_spec())
        return [problem for problem in problems if field in problem or "num_rows" in problem]

    assert found(possible) == []
    assert len(found(impossible)) == 1
