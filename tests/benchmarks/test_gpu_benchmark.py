"""The benchmark of GPUs: each part has its own process and time; one that fails ends no other."""

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from benchmarks.__main__ import main
from benchmarks.gpu import command, part_process
from benchmarks.gpu.parts import Part, Scale, all_parts

PART = Part(name="a_part", arguments=("slstm", "--heads", "2"), expected_seconds=10)
ENVIRONMENT = {"device": "cpu", "commit": "abc"}


def scale(work: Path, *, is_tiny: bool) -> Scale:
    return Scale(device="cpu", is_tiny=is_tiny, work=work)


@pytest.mark.parametrize("is_tiny", [True, False])
def test_every_part_is_a_benchmark_with_options_that_it_has(tmp_path: Path, is_tiny: bool) -> None:
    parts = list(all_parts(scale(tmp_path, is_tiny=is_tiny)))
    assert len({part.name for part in parts}) == len(parts) > 10
    assert parts[0].name == "inputs"
    for part in parts:
        name, *options = part.arguments
        benchmark: Any = main.commands[name]
        context = benchmark.make_context(name, [*options, "--json"])
        assert context.params["as_json"]
        assert context.params["device"] == "cpu"


def test_the_most_telling_parts_fit_into_nine_minutes(tmp_path: Path) -> None:
    parts = list(all_parts(scale(tmp_path, is_tiny=False)))
    spent = 0
    fitting = []
    for part in parts:
        spent += part.expected_seconds
        fitting += [part.name] * (spent <= 540)
    assert {"stage_one_top_k_512", "stage_one_top_k_2048", "stage_two", "slstm", "loss"} < {
        *fitting
    }


def run_script(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, seconds: float = 60
) -> dict[str, Any]:
    """What is found where the part is this program."""
    program = [sys.executable, "-c", script]
    monkeypatch.setattr(part_process, "command_of", lambda part: program)
    return part_process.run_part(PART, seconds, tmp_path / "log")


def test_a_part_s_last_line_is_its_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = run_script(monkeypatch, tmp_path, "print('compiling'); print('{\"mfu\": 0.5}')")
    assert found["figures"] == {"mfu": 0.5}
    assert found["arguments"] == "slstm --heads 2"
    assert 0 <= found["seconds"] < 60


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("raise ValueError('no such kernel')", "exit status 1: .*no such kernel"),
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL"),
        ("print('no figures')", "printed no JSON object, but b'no figures"),
        ("pass", "printed no JSON object, but b''"),
    ],
)
def test_a_part_that_fails_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, problem: str
) -> None:
    found = run_script(monkeypatch, tmp_path, script)
    assert "figures" not in found
    assert re.match(problem, found["failed"]), found


def test_a_part_that_takes_too_long_ends_with_what_it_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = (
        "import pathlib, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))\n"
        "time.sleep(300)\n"
    )
    found = run_script(monkeypatch, tmp_path, script, seconds=5)
    assert found["failed"].startswith("stopped after 5 seconds")
    child = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    for _ in range(100):
        if not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the part's own process still runs")


def invoke(
    monkeypatch: pytest.MonkeyPatch, out: Path, ends: dict[str, dict[str, Any]], *options: str
) -> tuple[Result, dict[str, Any]]:
    """The command where parts end as ``ends`` says, or else with figures; and what it wrote."""

    def run_part(part: Part, seconds: float, log: Path) -> dict[str, Any]:
        figures = ENVIRONMENT if part.name == "environment" else {"limit": seconds}
        return {"arguments": "", "seconds": 1.0, **ends.get(part.name, {"figures": figures})}

    monkeypatch.setattr(command, "run_part", run_part)
    arguments = ["gpu", "--device", "cpu", "--tiny", "--out", str(out), *options]
    result = CliRunner().invoke(main, arguments)
    written = json.loads((out / "gpu.json").read_text()) if (out / "gpu.json").exists() else {}
    return result, written


def test_all_figures_are_printed_and_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result, written = invoke(monkeypatch, tmp_path, {})
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == written
    assert written["environment"] == ENVIRONMENT
    parts = list(all_parts(scale(tmp_path, is_tiny=True)))
    assert list(written["parts"]) == [part.name for part in parts]
    for part in parts:
        assert written["parts"][part.name]["figures"]["limit"] <= part.limit_seconds


def test_a_failing_part_ends_no_other_and_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result, written = invoke(monkeypatch, tmp_path, {"slstm": {"failed": "exit status 1: boom"}})
    assert result.exit_code == 1
    assert "1 parts failed: slstm" in result.stderr
    assert "boom" in result.stderr
    assert written["parts"]["slstm"]["failed"] == "exit status 1: boom"
    assert sum("figures" in part for part in written["parts"].values()) == len(written["parts"]) - 1


def test_without_a_teacher_what_needs_one_is_skipped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result, written = invoke(monkeypatch, tmp_path, {"inputs": {"failed": "no room"}})
    assert result.exit_code == 1
    for name in ("stage_two", "stage_one_hidden_64", "hybrid"):
        assert written["parts"][name]["skipped"] == "there is no teacher"
    assert "figures" in written["parts"]["slstm"]


def test_parts_for_which_no_time_is_left_are_skipped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result, written = invoke(monkeypatch, tmp_path, {}, "--seconds", "50")
    assert result.exit_code == 0, result.output
    assert "figures" in written["parts"]["inputs"]
    assert written["parts"]["inputs"]["figures"]["limit"] <= 45
    assert "s are left, and it takes 120" in written["parts"]["stage_two"]["skipped"]
    assert "parts skipped: stage_two" in result.stderr


def test_a_device_that_is_not_there_ends_it_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result, written = invoke(monkeypatch, tmp_path, {"environment": {"failed": "sees 0 GPUs"}})
    assert result.exit_code == 1
    assert "sees 0 GPUs" in result.stderr
    assert written == {}


def test_an_unknown_part_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result, _ = invoke(monkeypatch, tmp_path, {}, "--only", "slstn")
    assert result.exit_code == 2
    assert "the parts are inputs, stage_one_top_k_64" in result.stderr


def test_the_environment_names_what_figures_depend_on() -> None:
    result = CliRunner().invoke(main, ["environment", "--device", "cpu", "--json"])
    found = json.loads(result.stdout)
    assert found["packages"].keys() > {"torch", "transformers", "xlstm"}
    assert found["device"] == "cpu"
    refused = CliRunner().invoke(main, ["environment", "--device", "cuda"])
    assert refused.exit_code == 1
    assert "PyTorch sees 0 GPUs" in refused.stderr


@pytest.mark.slow
def test_the_whole_benchmark_runs_on_a_processor(tmp_path: Path) -> None:
    arguments = ["gpu", "--device", "cpu", "--tiny", "--out", str(tmp_path), "--seconds", "3000"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    parts = json.loads(result.stdout)["parts"]
    assert all(part["figures"] for part in parts.values()), parts
