"""Each bound from both sides; a cache that was written here has no impossible numbers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import cache_format
from cache_format.metadata.impossible_numbers import impossible_numbers
from tests.support.sample_cache import (
    drawn_targets,
    sample_spec,
    sampled_targets,
    write_sample_cache,
)


@pytest.mark.parametrize(
    "targets", [{}, {"targets": sampled_targets()}, {"targets": drawn_targets()}]
)
def test_what_is_written_here_is_possible(tmp_path: Path, targets: dict[str, Any]) -> None:
    spec = write_sample_cache(tmp_path, sample_spec(**targets))
    for entry in cache_format.open(tmp_path).manifest.shards:
        assert impossible_numbers(entry, spec) == []


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
        ("num_bytes", 5 * 20, 5 * 20 - 1),
        # 64 KiB, and for each of 5 rows 64 KiB and 12 positions of (5 + 64) · 16 + 8 · 8 bytes.
        ("num_bytes", 463_296, 463_297),
        ("num_scored", 60, 61),
        ("sum_num_kept", 5, 26),
        ("sum_next_logprob", 0.0, 0.5),
        ("sum_next_logprob", -65504.0, -1e9),
        ("sum_kept_mass", 5.0, 5.1),
        ("sum_kept_mass", 0.0, -0.5),
        ("column_bytes", {"kept": 0}, {"kept": -1}),
    ],
)
def test_each_number(root: Path, field: str, possible: object, impossible: object) -> None:
    entry = cache_format.open(root).manifest.shards[1]
    of_statistics = hasattr(entry.statistics, field)
    if of_statistics and field != "num_scored":
        sums = replace(entry.statistics, num_scored=5, sum_num_kept=5, sum_kept_mass=1.0)
        sums = replace(sums, sum_next_logprob=-1.0, column_bytes={})
    else:
        sums = replace(entry.statistics, sum_num_kept=61, column_bytes={})

    def found(value: Any) -> list[str]:
        changed = replace(entry, statistics=sums)
        if of_statistics:
            changed = replace(entry, statistics=replace(sums, **{field: value}))
        else:
            changed = replace(changed, **{field: value})
        problems = impossible_numbers(changed, sample_spec())
        return [problem for problem in problems if field in problem or "num_rows" in problem]

    assert found(possible) == []
    assert len(found(impossible)) == 1
