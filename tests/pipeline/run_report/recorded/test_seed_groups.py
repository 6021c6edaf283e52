"""Which runs are one recipe, what is said of it, and in which order."""

import statistics
from pathlib import Path

import pytest

from pipeline.run_report.recorded.find_runs import find_runs
from pipeline.run_report.recorded.seed_groups import (
    SeedGroup,
    comparable,
    group_name,
    group_runs,
    rank,
)
from pipeline.run_report.recorded.settings import deciding_settings, differing_settings
from stages.train_student.checkpoints.run_record import read_record, write_record
from tests.support.run_directories import write_run


def grouped(place: Path) -> dict[str, SeedGroup]:
    return {group.name: group for group in group_runs(find_runs([place]))}


def test_runs_that_differ_in_their_seed_are_one_group(tmp_path: Path) -> None:
    for seed, loss in enumerate((4.0, 4.2, 4.7)):
        write_run(tmp_path / f"fixed/seed-{seed}", seed=seed, loss=loss)
    write_run(tmp_path / "labels/seed-0", alpha_start=0.0)
    found = grouped(tmp_path)
    assert set(found) == {"fixed", "labels/seed-0"}
    assert found["fixed"].seeds == "0, 1, 2"
    spread = found["fixed"].final("validation/loss")
    assert spread is not None
    assert spread.mean == pytest.approx(4.3)
    assert spread.deviation == pytest.approx(statistics.stdev([4.0, 4.2, 4.7]))
    alone = found["labels/seed-0"].final("validation/loss")
    assert alone is not None
    assert alone.deviation is None


def test_what_decides_a_result_sets_groups_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "a", seed=0)
    write_run(tmp_path / "b", seed=1, cache_id="00" * 32)
    write_run(tmp_path / "c", seed=2, shards_sha256="11" * 32)
    write_run(tmp_path / "d", seed=3, teacher_in_the_loop=True)
    write_run(tmp_path / "e", seed=4, student={"kind": "distil_xlstm", "num_blocks": 2})
    write_run(tmp_path / "f", seed=5, initial_weights_sha256="22" * 32)
    assert len(grouped(tmp_path)) == 6


def test_a_setting_that_is_newer_than_a_run_has_its_default(tmp_path: Path) -> None:
    write_run(tmp_path / "new-0", seed=0)
    old = write_run(tmp_path / "new-1", seed=1)
    record = read_record(old)
    for key in ("objective", "learning_rate_schedule", "min_learning_rate"):
        del record.identity[key]
    write_record(old, record)
    assert list(grouped(tmp_path)) == ["new"]


def test_seeds_may_each_begin_from_weights_of_their_own(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / f"a/{seed}", seed=seed, initial_weights_sha256=f"{seed}" * 64)
    for number, weights in enumerate("xy"):
        write_run(tmp_path / f"b/{number}", initial_weights_sha256=weights, beta_end=0.0)
    assert [len(group.runs) for group in grouped(tmp_path).values()] == [3, 1, 1]


def test_unfinished_runs_of_a_finished_recipe_are_not_counted(tmp_path: Path) -> None:
    write_run(tmp_path / "a-0", seed=0, loss=4.0)
    write_run(tmp_path / "a-1", seed=1, loss=8.0, steps=2, is_finished=False)
    write_run(tmp_path / "b", loss=1.0, steps=2, is_finished=False, beta_end=0.0)
    found = grouped(tmp_path)
    spread = found["a"].final("validation/loss")
    assert spread is not None
    assert (spread.mean, spread.num_runs) == (4.0, 1)
    ranked = rank(list(found.values()), "validation/loss", is_lower_better=True)
    assert [group.name for group in ranked] == ["a", "b"]


def test_rank_by_what_should_be_high(tmp_path: Path) -> None:
    write_run(tmp_path / "low", loss=4.0)
    write_run(tmp_path / "high", loss=5.0, beta_end=0.0)
    groups = list(grouped(tmp_path).values())
    by_loss = rank(groups, "validation/loss", is_lower_better=True)
    by_agreement = rank(groups, "validation/loss", is_lower_better=False)
    assert [group.name for group in by_loss] == ["low", "high"]
    assert [group.name for group in by_agreement] == ["high", "low"]


def test_groups_of_other_caches_or_rows_are_sets_of_their_own(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", beta_end=0.0)
    write_run(tmp_path / "c", cache_id="00" * 32)
    write_run(tmp_path / "d", beta_start=0.0)
    (tmp_path / "d/recipe.toml").write_text("[train_student]\nvalidation_rows = 2\n")
    sets = comparable(list(grouped(tmp_path).values()), "validation/loss", is_lower_better=True)
    assert [([group.name for group in found.groups], found.num_rows) for found in sets] == [
        (["a", "b"], 8),
        (["c"], 8),
        (["d"], 2),
    ]


@pytest.mark.parametrize("text", [None, "["])
def test_a_run_whose_recipe_is_lost_stays_with_its_seeds(tmp_path: Path, text: str | None) -> None:
    for seed in range(3):
        write_run(tmp_path / f"a-{seed}", seed=seed)
    (tmp_path / "a-0/recipe.toml").unlink()
    if text is not None:
        (tmp_path / "a-0/recipe.toml").write_text(text)
    (found,) = comparable(list(grouped(tmp_path).values()), "validation/loss", is_lower_better=True)
    assert [group.name for group in found.groups] == ["a"]
    assert (len(found.groups[0].runs), found.num_rows) == (3, 8)


def test_a_lost_recipe_is_not_guessed_where_the_others_disagree(tmp_path: Path) -> None:
    for name in "abc":
        write_run(tmp_path / name)
    (tmp_path / "b/recipe.toml").write_text("[train_student]\nvalidation_rows = 2\n")
    (tmp_path / "c/recipe.toml").unlink()
    sets = comparable(list(grouped(tmp_path).values()), "validation/loss", is_lower_better=True)
    assert [found.num_rows for found in sets] == [8, 2, None]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a"], "a"),
        (["fixed-0", "fixed-1"], "fixed"),
        (["fixed/seed-10", "fixed/seed-11"], "fixed"),
        (["run10", "run11", "run2"], "run"),
        (["labels_s1", "labels_s2"], "labels"),
        (["top64/0", "top64/1"], "top64"),
        (["seed0", "seed1"], "seed0 and 1 more"),
        (["x", "y", "z"], "x and 2 more"),
    ],
)
def test_names_of_groups(names: list[str], expected: str) -> None:
    assert group_name(names) == expected


def test_groups_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for number, beta in ((0, 0.0), (1, 0.0), (2, 0.05), (3, 0.05)):
        write_run(tmp_path / f"run-{number}", seed=number, beta_end=beta)
    assert list(grouped(tmp_path)) == ["run", "run (2)"]


def test_runs_are_found_below_a_directory_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        write_run(tmp_path / f"deep/er/run-{number}", seed=number)
    (tmp_path / "deep/loop").symlink_to(tmp_path)
    assert [run.name for run in find_runs([tmp_path])] == ["run-1", "run-2", "run-10"]
    twice = find_runs([tmp_path, tmp_path / "deep/er/run-2"])
    assert len(twice) == 3
    assert [run.name for run in find_runs([tmp_path / "deep/er/run-2"])] == ["run-2"]


def test_a_place_without_runs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no run of stage two in it"):
        find_runs([tmp_path / "empty"])


def test_differences(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", seed=1, student={"kind": "distil_xlstm", "num_blocks": 4})
    tables = [deciding_settings(run) for run in find_runs([tmp_path])]
    assert differing_settings(tables) == ["seed", "student.num_blocks"]


def test_trials_of_a_sweep_are_no_runs(tmp_path: Path) -> None:
    write_run(tmp_path / "base/seed=0")
    write_run(tmp_path / ".tmp-ablate-x/0/run")
    assert [run.path for run in find_runs([tmp_path])] == [tmp_path / "base/seed=0"]
