"""Differences of recipes over the seeds that both have finished."""

import statistics
from pathlib import Path

import pytest

from pipeline.run_report.recorded.find_runs import find_runs
from pipeline.run_report.recorded.paired_differences import paired_difference
from pipeline.run_report.recorded.seed_groups import SeedGroup, group_runs
from tests.support.run_directories import write_run


def grouped(place: Path) -> dict[str, SeedGroup]:
    return {group.name: group for group in group_runs(find_runs([place]))}


def test_a_difference_is_taken_within_each_seed(tmp_path: Path) -> None:
    for seed, (base, ours) in enumerate([(4.0, 4.1), (5.0, 5.3), (6.0, 6.2)]):
        write_run(tmp_path / f"base/seed-{seed}", seed=seed, loss=base)
        write_run(tmp_path / f"ours/seed-{seed}", seed=seed, loss=ours, beta_end=0.0)
    found = grouped(tmp_path)
    spread = paired_difference(found["ours"], found["base"], "validation/loss")
    assert spread is not None
    assert spread.mean == pytest.approx(0.2)
    assert spread.deviation == pytest.approx(statistics.stdev([0.1, 0.3, 0.2]))
    assert spread.num_runs == 3
    back = paired_difference(found["base"], found["ours"], "validation/loss")
    assert back is not None
    assert back.mean == pytest.approx(-0.2)


def test_only_seeds_that_both_have_finished_once_count(tmp_path: Path) -> None:
    write_run(tmp_path / "base/a-0", seed=0, loss=4.0)
    write_run(tmp_path / "base/a-1", seed=1, loss=4.0)
    write_run(tmp_path / "base/a-2", seed=2, loss=4.0)
    write_run(tmp_path / "base/a-2-again", seed=2, loss=4.0)
    write_run(tmp_path / "ours/a-0", seed=0, loss=4.5, beta_end=0.0)
    write_run(tmp_path / "ours/a-1", seed=1, loss=9.0, beta_end=0.0, is_finished=False)
    write_run(tmp_path / "ours/a-2", seed=2, loss=9.0, beta_end=0.0)
    ours, base = sorted(group_runs(find_runs([tmp_path])), key=lambda group: len(group.runs))
    spread = paired_difference(ours, base, "validation/loss")
    assert spread is not None
    assert spread.mean == pytest.approx(0.5)
    assert (spread.deviation, spread.num_runs) == (None, 1)
    assert paired_difference(ours, base, "validation/ece") is None
