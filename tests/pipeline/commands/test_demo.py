"""How ``pipeline demo`` is called; its results are tested with the demo."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command_line import fail_with, run


def test_the_demo_command_runs_the_commands_it_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def demo(
        out: Path, command: Callable[[list[str]], None], *, seed: int, with_hybrid: bool
    ) -> None:
        assert (out, seed, with_hybrid) == (tmp_path / "out", 3, True)
        command(["recipes"])

    monkeypatch.setattr("pipeline.demo.run.run_demo", demo)
    result = run("demo", "--out", tmp_path / "out", "--seed", "3", "--hybrid")
    assert result.exit_code == 0, result.output
    assert "distil-xlstm" in result.output


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (ValueError("no teacher"), 1, "Error: no teacher"),
        (KeyboardInterrupt(), 130, "Interrupted. Finished work is kept"),
    ],
)
def test_a_failure_of_a_command_within_the_demo_is_reported_once(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: BaseException,
    code: int,
    expected: str,
) -> None:
    def demo(out: Path, command: Callable[[list[str]], None], **_: object) -> None:
        command(["cache-teacher", "--recipe", "distil-xlstm", "--out", str(out)])
        pytest.fail("went on after a failure")

    monkeypatch.setattr("pipeline.demo.run.run_demo", demo)
    monkeypatch.setattr("stages.cache_teacher.run.cache_teacher", fail_with(error))
    result = run("demo", "--out", tmp_path / "out")
    assert result.exit_code == code
    assert result.stderr.count(expected) == 1
    assert "went on" not in result.output


def test_wrong_usage_within_the_demo_exits_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def demo(out: Path, command: Callable[[list[str]], None], **_: object) -> None:
        command(["cache-teacher"])

    monkeypatch.setattr("pipeline.demo.run.run_demo", demo)
    assert run("demo", "--out", tmp_path).exit_code == 2
