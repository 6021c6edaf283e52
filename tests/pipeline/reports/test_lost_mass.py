"""What targets leave out, against what stage two takes a cache's rows to be."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cache_format
from cache_format.metadata.spec_parts.targets import KL_TEMPERATURES
from cache_format.metadata.splits import SPLITS
from pipeline.reports import lost_mass
from pipeline.reports.inspection import summarise, summary_text
from pipeline.reports.lost_mass import mass_outside
from stages.train_student.data.targets.ids import kept_targets, sparse_targets
from tests.support.sample_cache import (
    hidden_targets,
    sample_row,
    sample_spec,
    sampled_targets,
    top_k_hidden_targets,
    write_sample_cache,
)


@pytest.fixture(params=["tiny", "sample"])
def cache_path(request: pytest.FixtureRequest, tiny_cache: Path, tmp_path: Path) -> Path:
    """A teacher's cache, and one with positions that leave no id out."""
    if request.param == "tiny":
        return tiny_cache
    write_sample_cache(tmp_path / "cache")
    return tmp_path / "cache"


def test_the_mass_outside_is_that_of_the_losss_tail(
    cache_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost_mass, "_MOST_ROWS", 10_000)
    cache = cache_format.open(cache_path)
    rows = [row for split in SPLITS for _, row in cache.iter_rows(split)]
    targets, place = cache.spec.targets, np.flatnonzero([row.scored() for row in rows])
    kept = kept_targets(rows, targets.logits.top_k)
    sparse = sparse_targets(kept, torch.from_numpy(place), targets)
    expected = {
        f"{temperature:g}": sparse.logprobs(temperature)[1].exp().mean().item()
        for temperature in KL_TEMPERATURES
    }
    assert mass_outside(cache) == pytest.approx(expected, rel=1e-6)


def test_the_mass_outside_agrees_with_the_receipts(tiny_cache: Path) -> None:
    summary = summarise(tiny_cache)
    outside = 1 - summary["teacher"]["mean_kept_mass"]
    assert summary["mass_outside"]["1"] == pytest.approx(outside, rel=0.3)
    assert summary["mass_outside"]["1"] < summary["mass_outside"]["2"]


def test_only_a_few_rows_are_read(tiny_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lost_mass, "_MOST_ROWS", 2)
    cache = cache_format.open(tiny_cache)
    read: list[tuple[str, int]] = []
    read_row = cache.read_row

    def told(split: Any, index: int, **options: Any) -> Any:
        read.append((split, index))
        return read_row(split, index, **options)

    monkeypatch.setattr(cache, "read_row", told)
    mass_outside(cache)
    assert read == [(split, n) for split in SPLITS for n in (0, cache.num_rows(split) - 1)]


def test_where_no_id_is_left_out_no_mass_is_outside() -> None:
    spec = sample_spec()
    row = sample_row(0, spec)
    tail = np.full_like(row.kept.tail_log_mass, -np.inf)
    whole = replace(row, kept_ids=replace(row.kept, tail_log_mass=tail))
    mass_P = lost_mass._tail_mass(whole, spec.targets.inverse_temperatures, 1.5)
    assert len(mass_P) == row.scored().sum()
    assert not mass_P.any()


def test_the_summary_shows_what_each_kind_is_known_to_lose(tmp_path: Path) -> None:
    spec = sample_spec()
    kinds = {
        "kept": spec.targets,
        "sampled": sampled_targets(),
        "hidden": hidden_targets(),
        "both": top_k_hidden_targets(),
    }
    found = {}
    for name, targets in kinds.items():
        write_sample_cache(tmp_path / name, replace(spec, targets=targets))
        summary = summarise(tmp_path / name)
        json.dumps(summary)
        found[name] = (summary["mass_outside"] is not None, summary["self_kl"] is not None)
        is_shown = re.search(r"^  left out +of the mass", summary_text(summary), re.MULTILINE)
        assert bool(is_shown) == found[name][0]
    assert found == {
        "kept": (True, False),
        "sampled": (False, False),
        "hidden": (False, True),
        "both": (True, True),
    }


def test_a_damaged_row_is_told_of_and_the_rest_is_shown(tmp_path: Path) -> None:
    write_sample_cache(tmp_path)
    shard = next((tmp_path / "shards").glob("00001-*"))
    damaged = bytearray(shard.read_bytes())
    for at in range(0, len(damaged), 16):
        damaged[at] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(damaged)
    summary = summarise(tmp_path)
    assert summary["mass_outside"] is None
    (warning,) = summary["warnings"]
    assert f"{shard}: damaged" in warning
    assert warning in summary_text(summary)
