"""What speaks against a sweep: the cache, and what is in the place of its runs."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import cache_format
from pipeline.ablation.planning.checks import CheckedRun, check_runs, left_over
from pipeline.ablation.planning.planned_runs import Plan, Problems
from pipeline.ablation.planning.sweep_copy import write_copy
from pipeline.ablation.planning.train_command import TrainCommand
from pipeline.run_report.recorded.recorded_run import is_held
from stages.train_student.checkpoints.run_record import read_record, write_record
from stages.train_student.trainer.run_directory import held
from tests.support.sweeps import planned
from tests.support.train_runs import run as train_run


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return planned(tmp_path / "file", "[variant.a]\n[variant.b]\ntrain_student.beta_end = 0.05\n")[
        0
    ]


@pytest.fixture
def out(tmp_path: Path, plan: Plan) -> Path:
    write_copy(plan, tmp_path / "out")
    return tmp_path / "out"


def checked(
    plan: Plan, cache: Path, out: Path, init: Path | None = None
) -> tuple[list[CheckedRun], str]:
    problems = Problems()
    command = TrainCommand(cache=cache, init=init)
    found = check_runs(plan, cache_format.open(cache), out, command, problems)
    return found, problems.text("sweep")


def test_states_of_runs(plan: Plan, tiny_cache: Path, out: Path) -> None:
    first, second = plan.runs
    train_run(first.config, tiny_cache, out / first.name)
    train_run(second.config, tiny_cache, out / second.name)
    shutil.rmtree(out / second.name / "model")
    found, problems = checked(plan, tiny_cache, out)
    assert problems == ""
    assert [each.state for each in found] == ["finished", "begun"]


def test_a_finished_run_needs_no_checkpoint(plan: Plan, tiny_cache: Path, out: Path) -> None:
    first = plan.runs[0]
    train_run(first.config, tiny_cache, out / first.name)
    shutil.rmtree(out / first.name / "checkpoints")
    found, problems = checked(plan, tiny_cache, out)
    assert problems == ""
    assert [each.state for each in found] == ["finished", "new"]


def test_the_precision_of_a_finished_run_is_what_auto_was(
    plan: Plan, tiny_cache: Path, out: Path
) -> None:
    first = plan.runs[0]
    train_run(first.config, tiny_cache, out / first.name)
    assert first.config.precision == "fp32"
    config = replace(first.config, precision="auto")
    run = replace(first, recipe=replace(first.recipe, train_student=config))
    point = replace(plan.points[0], runs=(run,))
    _, problems = checked(replace(plan, points=(point,)), tiny_cache, out)
    assert problems == ""


def test_other_initial_weights_are_refused(plan: Plan, tiny_cache: Path, out: Path) -> None:
    first = plan.runs[0]
    train_run(first.config, tiny_cache, out / first.name)
    found, problems = checked(plan, tiny_cache, out, init=out / first.name)
    assert "a: " in problems
    assert "began from random weights, and would now begin from " in problems
    assert [each.run.name for each in found] == ["b/seed=0"]


def test_a_sweep_that_began_on_another_cache_is_refused_in_one_sentence(
    plan: Plan, tiny_cache: Path, out: Path
) -> None:
    for run in plan.runs:
        train_run(run.config, tiny_cache, out / run.name)
        record = read_record(out / run.name)
        identity = record.identity | {"cache_id": "0" * 64}
        write_record(out / run.name, replace(record, identity=identity))
    found, problems = checked(plan, tiny_cache, out)
    assert found == []
    assert problems.count("began on another cache, ") == 1
    assert f"{out / plan.runs[0].name}: began on another cache, {tiny_cache}" in problems
    assert "shards_sha256" not in problems


def test_what_is_in_the_way_of_a_run_is_named(plan: Plan, tiny_cache: Path, out: Path) -> None:
    (out / "a").write_text("a file")
    (out / "b").mkdir()
    (out / "b/run.json").write_text("{}")
    found, problems = checked(plan, tiny_cache, out)
    assert found == []
    assert f"{out}/a: not a directory. Move it away." in problems
    assert f"{out}/b: holds a run itself" in problems


def test_a_directory_that_is_no_run_is_not_trained_into(
    plan: Plan, tiny_cache: Path, out: Path
) -> None:
    (out / "a/seed=0").mkdir(parents=True)
    (out / "a/seed=0/notes").write_text("mine")
    _, problems = checked(plan, tiny_cache, out)
    assert "a/seed=0 is not empty, and not a run" in problems


def test_a_run_of_another_process_is_held(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "run")
    with held(tmp_path / "run"):
        assert is_held(tmp_path / "run")
    assert not is_held(tmp_path / "run")


def test_runs_that_left_the_sweep_are_found(plan: Plan, out: Path) -> None:
    for name in ("a/seed=0", "a/seed=7", "c/num_blocks=2/seed=0"):
        (out / name).mkdir(parents=True)
        (out / name / "run.json").write_text("{}")
    assert left_over(plan, out) == ["a/seed=7", "c/num_blocks=2/seed=0"]
