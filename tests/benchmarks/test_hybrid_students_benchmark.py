"""Hybrid students of one teacher: which commands are typed, and the table of their trainings."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import demo_text
from benchmarks.__main__ import main
from benchmarks.hybrid import students
from benchmarks.result_files import block
from pipeline.run_report.recorded.metric_series import MetricSeries
from pipeline.run_report.recorded.recorded_run import RecordedRun

_WHOLE, _WINDOW = "mLSTM, window and sinks", "window and sinks"


def recorded(path: Path, name: str) -> RecordedRun:
    """A run whose loss tells its phase, mixer and seed, before and after."""
    phase, student = name.split("/")
    mixer, seed = student.rsplit("-", 1)
    loss = 0.01 * int(seed) + (0.5 if mixer == "window-and-sinks" else 0.0)
    loss += 1.0 if phase == "distilled" else 2.0
    curves = {"loss": {0: loss + 1, 4: loss}, "kl": {0: loss / 2 + 1, 4: loss / 2}}
    series = {f"validation/{key}": curve for key, curve in curves.items()}
    series["validation/teacher_loss"] = {0: 1.5}
    series["validation/output_gate_layer_01"] = {0: 0.1, 4: 0.3}
    return RecordedRun(path=path, name=name, state="finished", metrics=MetricSeries(by_name=series))


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands; nothing is run."""
    commands: list[list[str]] = []
    monkeypatch.setattr(
        students, "type_command", lambda *words: commands.append(list(map(str, words)))
    )
    monkeypatch.setattr(students, "read_run", recorded)
    monkeypatch.setattr(demo_text, "write_parquet", lambda *_: None)
    return commands


def run(*words: str) -> Any:
    """The result of the command."""
    return CliRunner().invoke(main, ["hybrid-students", *words])


def test_every_student_is_aligned_and_distilled_from_there(
    tmp_path: Path, typed: list[list[str]]
) -> None:
    assert run("--work", str(tmp_path), "--seeds", "2", "--json").exit_code == 0
    cached, *trained = typed
    assert cached[0] == "cache-teacher"
    out = {command[command.index("--out") + 1]: command for command in trained}
    assert len(out) == len(trained) == 2 * (2 * len(students.MIXERS) - 1)
    for path, command in out.items():
        phase, student = Path(path).parts[-2:]
        assert ("--init" in command) == (phase == "distilled" and "mlstm" in student)
        if "--init" in command:
            assert command[command.index("--init") + 1] == path.replace("distilled", "aligned")
        of_recipe = "align" if phase == "aligned" else "distill"
        assert command[command.index("--recipe") + 1] == f"demo-hybrid-{of_recipe}"
        assert f"train_student.seed={student[-1]}" in command
    assert not (tmp_path / "aligned" / "window-and-sinks-0").exists()


def test_differences_are_to_the_whole_mixer_in_the_same_seed(
    tmp_path: Path, typed: list[list[str]]
) -> None:
    result = json.loads(run("--work", str(tmp_path), "--seeds", "2", "--json").stdout)
    rows = {row["name"]: row for row in result["rows"]}
    assert rows[_WHOLE]["untrained_loss"]["mean"] == pytest.approx(3.005)
    assert rows[_WHOLE]["aligned_loss"]["mean"] == pytest.approx(2.005)
    assert rows[_WHOLE]["distilled_loss"]["mean"] == pytest.approx(1.005)
    assert rows[_WHOLE]["distilled_loss"]["deviation"] == pytest.approx(0.01 / 2**0.5)
    assert rows[_WINDOW]["untrained_loss"]["mean"] == pytest.approx(2.505)  # before distillation
    assert "aligned_loss" not in rows[_WINDOW]
    assert rows[_WINDOW]["loss_difference"]["mean"] == pytest.approx(0.5)
    assert rows[_WINDOW]["loss_difference"]["deviation"] == pytest.approx(0, abs=1e-12)
    assert "loss_difference" not in rows[_WHOLE]
    assert result["output_gates"] == {"01": {"mean": 0.3, "deviation": 0.0}}
    assert rows["teacher"] == {"name": "teacher", "untrained_loss": 1.5}
    assert "| window and sinks | 2.5050 ±0.0071 |" in block(result)


def test_students_of_other_options_are_not_taken(tmp_path: Path, typed: list[list[str]]) -> None:
    assert run("--work", str(tmp_path), "--quick").exit_code == 0
    typed.clear()
    refused = run("--work", str(tmp_path), "--quick", "--window", "8")
    assert refused.exit_code == 2
    assert "other options (window)" in " ".join(refused.stderr.split())
    assert not typed
    assert run("--work", str(tmp_path), "--quick", "--seeds", "2").exit_code == 0  # only more


def test_a_command_that_fails_is_named_and_can_be_repeated(tmp_path: Path) -> None:
    refused = run("--work", str(tmp_path), "--corpus", str(tmp_path), "--quick")
    assert refused.exit_code == 1
    assert "pipeline cache-teacher ended with status" in refused.stderr
    assert "--work" in refused.stderr


def test_a_damaged_end_of_the_metrics_is_not_replaced_by_an_older_one(
    tmp_path: Path, typed: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(path: Path, name: str) -> RecordedRun:
        run = recorded(path, name)
        run.metrics.damaged["validation/kl"] = 9
        return run

    monkeypatch.setattr(students, "read_run", damaged)
    refused = run("--work", str(tmp_path), "--json")
    assert refused.exit_code == 1
    assert "do not end with a validation/kl" in refused.stderr
