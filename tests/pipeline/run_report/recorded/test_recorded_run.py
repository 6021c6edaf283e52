"""What a run's directory says, also where it is half-written or a stranger's."""

import json
import os
from pathlib import Path

import pytest

from pipeline.run_report.recorded.find_runs import find_runs
from pipeline.run_report.recorded.metric_series import read_series
from pipeline.run_report.recorded.recorded_run import planned_steps, read_run
from pipeline.run_report.recorded.run_costs import run_costs
from stages.train_student.checkpoints.extension import Extension
from stages.train_student.checkpoints.run_record import read_record, write_record
from stages.train_student.trainer.run_directory import held
from tests.support.run_directories import write_run
from tests.support.train_configs import tiny_train_config
from tests.support.train_runs import run as train_run


def test_a_finished_run(tmp_path: Path) -> None:
    found = read_run(write_run(tmp_path / "run"), "run")
    assert (found.state, found.state_text) == ("finished", "finished, 8 steps")
    assert found.metrics.last("validation/loss") == 4.0
    assert list(found.metrics.of("schedule/alpha")) == list(range(1, 9))
    assert found.problems == ()


def test_a_run_that_a_process_trains_into_is_running(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", steps=3, is_finished=False)
    with held(path):
        assert read_run(path, "run").state_text == "running, step 3 of 8"
    os.utime(path / "metrics.jsonl", (0, 86_400 * 365))
    assert read_run(path, "run").state_text == (
        "failed or interrupted at step 3 of 8, last line 1971-01-01 00:00 UTC"
    )
    with held(path):  # looking at it has not left a lock
        pass


def test_a_model_of_before_an_extension_does_not_finish_a_run(tmp_path: Path) -> None:
    extension = Extension(from_step=8, to_step=20)
    found = read_run(write_run(tmp_path / "run", extensions=(extension,)), "run")
    assert (found.state, found.num_steps) == ("stopped", 20)


def test_the_steps_of_epochs(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", max_steps=None, num_train_epochs=3)
    assert planned_steps(read_record(path)) == 3 * 4


def test_the_steps_are_those_that_training_plans(tiny_cache: Path, tmp_path: Path) -> None:
    config = tiny_train_config(max_steps=None, num_train_epochs=1, report_to=(), eval_steps=100)
    train_run(config, tiny_cache, tmp_path / "run")
    found = read_run(tmp_path / "run", "run")
    assert found.state == "finished"
    assert found.num_steps == found.metrics.last_step


def test_a_damaged_record_is_said(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    (path / "run.json").write_text((path / "run.json").read_text().replace("8", "9", 1))
    found = read_run(path, "run")
    assert (found.state, found.record) == ("unreadable", None)
    assert "run.json: damaged" in found.problems[0]
    assert found.metrics.last_step == 8


def test_a_record_that_is_a_directory_is_said(tmp_path: Path) -> None:
    path = write_run(tmp_path / "runs/bad")
    write_run(tmp_path / "runs/good")
    (path / "run.json").unlink()
    (path / "run.json").mkdir()
    bad, good = find_runs([tmp_path / "runs"])
    assert (bad.state, good.state) == ("unreadable", "finished")
    assert f"{path / 'run.json'}: could not be read" in bad.problems[0]


@pytest.mark.parametrize(("text", "expected"), [("[", "not read"), (None, "missing")])
def test_a_lost_recipe_is_said(tmp_path: Path, text: str | None, expected: str) -> None:
    path = write_run(tmp_path / "run")
    (path / "recipe.toml").unlink()
    if text is not None:
        (path / "recipe.toml").write_text(text)
    found = read_run(path, "run")
    assert len(found.problems) == 1
    assert f"{path / 'recipe.toml'}: {expected}" in found.problems[0]
    assert "those of the other runs" in found.problems[0]
    assert (found.state, found.has_recipe) == ("finished", False)
    (path / "run.json").write_text("{}")
    assert "other runs" not in read_run(path, "run").problems[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "missing, so the run's figures are lost"),
        ("", "holds no figure, so the run's figures are lost"),
        ("x\n", "1 line is damaged"),
        ("x\ny\n", "2 lines are damaged"),
    ],
)
def test_lost_figures_of_a_finished_run_are_said(
    tmp_path: Path, text: str | None, expected: str
) -> None:
    path = write_run(tmp_path / "run")
    (path / "metrics.jsonl").unlink()
    if text is not None:
        (path / "metrics.jsonl").write_text(text)
    found = read_run(path, "run")
    assert found.problems == (f"{path / 'metrics.jsonl'}: {expected}",)
    assert found.state_text == "finished, figures lost"


def test_a_run_that_has_not_reported_yet_is_not_damaged(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", is_finished=False)
    (path / "metrics.jsonl").unlink()
    assert read_run(path, "run").problems == ()
    (path / "checkpoints/step-00000004").mkdir(parents=True)
    assert "missing" in read_run(path, "run").problems[0]


@pytest.mark.parametrize("value", ["NaN", '"abc"', "null"])
def test_a_figure_that_is_no_number_is_said(tmp_path: Path, value: str) -> None:
    path = write_run(tmp_path / "run")
    file = path / "metrics.jsonl"
    damaged = file.read_text().replace('"validation/loss": 4.0,', f'"validation/loss": {value},')
    file.write_text(damaged)
    found = read_run(path, "run")
    assert found.problems == (
        f"{file}: validation/loss is no finite number, at step 8 for the last time",
    )
    assert found.metrics.last("validation/loss") is None  # step 7 is not the end
    assert found.metrics.last("validation/kl") == 1.0


def test_many_damaged_figures_are_counted(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    row = {"step": 8} | {f"m{number}": "x" for number in range(7)}
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    problems = read_run(path, "run").problems
    assert len(problems) == 6
    assert "2 other metrics" in problems[-1]


def test_lines_that_no_run_writes_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = [
        '{"step": 1, "a": 1, "b": true, "c": "x", "d": null, "e": [1]}',
        '{"step": 2, "a": 1e400, "b": NaN, "c": 1' + "0" * 400 + "}",
        '{"step": -1, "a": 3}',
        '{"step": true, "a": 3}',
        '["step"]',
        "[" * 100_000,
        '{"step": 1, "a": 5, "long ' + "x" * 200 + '": 1}',
        '{"step": 3, "a": 6',
    ]
    file.write_text("\n".join(lines))
    found = read_series(file)
    assert found.by_name == {"a": {1: 5.0}}
    assert found.num_unreadable == 4
    assert found.damaged == {"b": 2, "c": 2, "d": 1, "e": 1, "a": 2}


def test_the_line_that_is_being_written_is_no_damage(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "a": 1}\n{"step": 2, "a"')
    assert (read_series(file).by_name, read_series(file).num_unreadable) == ({"a": {1: 1.0}}, 0)
    assert read_series(tmp_path / "none").by_name == {}


def test_steps_are_in_order(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps({"step": step, "a": step}) + "\n" for step in (3, 1, 2)))
    assert list(read_series(file).of("a")) == [1, 2, 3]


def test_costs(tmp_path: Path) -> None:
    found = run_costs(read_run(write_run(tmp_path / "run"), "run"))
    assert found.tokens == 8 * 4 * 32
    assert found.bytes_read == pytest.approx(2 * 1000)  # 8 steps of 4 rows are two passes over 16
    assert found.seconds == pytest.approx(8 * 4 * 32 / 64)
    assert found.tokens_per_second == pytest.approx(64)
    assert (found.peak_bytes, found.loader_wait_share) == (2e9, 0.25)


def test_an_older_run_s_costs_are_found_in_its_cache(tiny_cache: Path, tmp_path: Path) -> None:
    train_run(tiny_train_config(max_steps=2, report_to=()), tiny_cache, tmp_path / "run")
    expected = run_costs(read_run(tmp_path / "run", "run"))
    record = read_record(tmp_path / "run")
    assert expected.bytes_read
    write_record(tmp_path / "run", type(record)(**(vars(record) | {"data": None})))
    assert run_costs(read_run(tmp_path / "run", "run")) == expected
    for location in ("s3://bucket/cache", "cache", str(tmp_path)):
        fields = vars(record) | {"data": None, "cache_location": location}
        write_record(tmp_path / "run", type(record)(**fields))
        assert run_costs(read_run(tmp_path / "run", "run")).bytes_read is None
