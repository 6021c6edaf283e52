"""Processes of a sweep: their GPU, their share of the cores, and that they end with it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.ablation.running.failed_run import error_text, failure_text
from pipeline.ablation.running.processes import Job, LocalProcesses, visible_gpus
from tests.support import ROOT

_PROGRAM = """
import signal, threading
from pipeline.ablation.running.child import end_with_parent

def asked(number, frame):
    print("asked", flush=True)

signal.signal(signal.SIGTERM, asked)
end_with_parent()
(watcher,) = set(threading.enumerate()) - {threading.main_thread()}
print("ready", flush=True)
while watcher.is_alive():
    watcher.join(0.01)
"""


@pytest.mark.parametrize("is_asked_by_others", [False, True])
def test_the_end_of_the_sweep_asks_a_run_once(is_asked_by_others: bool) -> None:
    """A second SIGTERM would end it without a checkpoint."""
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        if is_asked_by_others:
            process.send_signal(signal.SIGTERM)
            assert process.stdout.readline() == b"asked\n"
        process.stdin.close()
        rest = process.stdout.read()
    assert process.returncode == 0
    assert rest == (b"" if is_asked_by_others else b"asked\n")


def test_slots_share_gpus_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    launch = LocalProcesses(num_slots=3, gpus=("2", "GPU-5"))
    environments = [launch.environment(slot) for slot in range(3)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in environments] == ["2", "GPU-5", "2"]
    assert {each["OMP_NUM_THREADS"] for each in environments} == {"2"}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert launch.environment(0)["OMP_NUM_THREADS"] == "5"


def test_one_run_at_a_time_has_the_whole_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert LocalProcesses(num_slots=1, gpus=("0",)).environment(0) == dict(os.environ)


@pytest.mark.parametrize(
    ("named", "expected"), [("", ()), ("3,5", ("3", "5")), ("MIG-a, 1,-1,2", ("MIG-a", "1"))]
)
def test_gpus_are_those_that_the_sweep_may_see(
    monkeypatch: pytest.MonkeyPatch, named: str, expected: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus(["auto", "cpu"]) == expected
    assert visible_gpus(["cpu"]) == ()


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        ("$ now pipeline x\nError: a\nError: b\n(PIPELINE_DEBUG=1 …)\n", 1, "b"),
        ("$ now pipeline x\nError: old\n$ now pipeline x\nboom\n\n", 1, "boom"),
        ("$ now pipeline x\n", 3, "exit code 3, and nothing was printed"),
        ("$ now pipeline x\nError: \x1b[2Ja\n", 1, "\\x1b[2Ja"),
        ("$ now pipeline x\n", -9, "ended by SIGKILL; the system may have run out of memory"),
        ("$ now pipeline x\n", -15, "ended by SIGTERM"),
    ],
)
def test_why_a_run_failed(tmp_path: Path, text: str, code: int, expected: str) -> None:
    (tmp_path / "log").write_text(text)
    assert failure_text(tmp_path / "log", code) == expected


def test_a_log_that_is_not_there_is_no_failure_of_the_sweep(tmp_path: Path) -> None:
    assert "its log cannot be read" in failure_text(tmp_path / "log", 1)


def test_a_command_begins_a_line_where_the_last_one_left_half_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the error of the last command would be taken for that of the new one."""
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: None)
    job = Job(name="base", arguments=("x",), out=tmp_path / "base", log=tmp_path / "base.log")
    launch = LocalProcesses(num_slots=1)
    launch(job, 0)
    assert job.log.read_text().startswith("$ ")
    with job.log.open("a") as log:
        log.write("Error: old\nended in the mid")
    launch(job, 0)
    assert error_text(job.log) == ""
