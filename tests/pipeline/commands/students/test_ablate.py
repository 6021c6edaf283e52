"""``pipeline ablate``, as it is typed: sweeps of tiny students, each in a process of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch
from click.testing import Result

from pipeline.run_report.recorded.recorded_run import is_held
from tests.support import ROOT
from tests.support.command_line import done, run
from tests.support.forked_jobs import forked_jobs
from tests.support.sweeps import planned, write_sweep
from tests.support.train_runs import metrics, weights
from tests.support.train_runs import run as train_run

_TWO = """
seeds = [0, 1]
[variant.base]
[variant.no-frobenius]
train_student.beta_start = 0.0
train_student.beta_end = 0.0
"""


class Swept:
    """A finished sweep, and what the command said."""

    def __init__(self, sweep: Path, cache: Path, out: Path, result: Result) -> None:
        self.sweep, self.cache, self.out, self.result = sweep, cache, out, result


def assert_same_run(found: Path, expected: Path) -> None:
    """Weights and metrics are equal, bit for bit."""
    assert metrics(found) == metrics(expected)
    theirs, ours = weights(expected), weights(found)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def files_below(directory: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(directory)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in directory.rglob("*")
    }


@pytest.fixture(scope="module")
def swept(
    tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServerContext, tiny_cache: Path
) -> Swept:
    root = tmp_path_factory.mktemp("swept")
    sweep, out = write_sweep(root / "file", _TWO), root / "out"
    arguments = ("--cache", tiny_cache, "--out", out, "--jobs", "2", "--no-trial")
    with forked_jobs(fork_server):
        return Swept(sweep, tiny_cache, out, done("ablate", sweep, *arguments))


def test_a_sweep_trains_ordinary_runs(swept: Swept, tmp_path: Path) -> None:
    plan, _ = planned(tmp_path / "file", _TWO)
    assert len(plan.runs) == 4
    for number in (0, 3):
        planned_run = plan.runs[number]
        train_run(planned_run.config, swept.cache, tmp_path / "alone" / str(number))
        assert_same_run(swept.out / planned_run.name, tmp_path / "alone" / str(number))
    said = swept.result.stdout.splitlines()
    assert said[0] == f"{swept.out}: all 4 runs are finished."
    rows = [line.split("  ")[0] for line in said[2:5]]
    assert sorted(rows) == ["base", "no-frobenius", "recipe"]
    assert all("2 (seeds 0, 1)" in line and " ± " in line for line in said[3:5])
    assert f"pipeline report {swept.out} --out" in said[-1]


def test_a_report_shows_a_line_for_each_variant(swept: Swept, tmp_path: Path) -> None:
    result = done("report", swept.out, "--out", tmp_path / "report")
    assert "4 runs of 2 recipes" in result.stdout
    text = (tmp_path / "report/report.md").read_text()
    assert "| no-frobenius | 2 \\(seeds 0, 1\\) |" in text


def test_finished_runs_are_not_repeated(swept: Swept) -> None:
    before = files_below(swept.out / "base")
    arguments = ("--cache", swept.cache, "--out", swept.out, "--json", "--quiet")
    again = done("ablate", swept.sweep, *arguments)
    last = json.loads(again.stdout.splitlines()[-1])
    assert (last["event"], last["runs"]) == ("done", 4)
    assert not any('"run":' in line for line in again.stdout.splitlines())
    assert files_below(swept.out / "base") == before


def test_settings_of_a_run_that_has_begun_cannot_change(swept: Swept, tmp_path: Path) -> None:
    changed = write_sweep(tmp_path / "file", _TWO.replace("beta_end = 0.0", "beta_end = 0.05"))
    before = files_below(swept.out)
    refused = run("ablate", changed, "--cache", swept.cache, "--out", swept.out, "--no-trial")
    assert refused.exit_code == 2
    assert "no-frobenius/seed=0 holds another run: beta_end was 0.0 and is 0.05." in refused.stderr
    assert "no-frobenius/seed=1 holds another run" in refused.stderr
    assert "give the variant another name" in refused.stderr
    assert "base/seed" not in refused.stderr
    assert files_below(swept.out) == before


def test_a_dry_run_shows_what_an_addition_would_train(swept: Swept, tmp_path: Path) -> None:
    """Speed is that of runs that were trained; what is left out of the sweep is said."""
    grown = _TWO.replace("[variant.no-frobenius]", "[variant.added]").replace("[0, 1]", "[0, 2]")
    sweep, before = write_sweep(tmp_path / "file", grown), files_below(swept.out)
    arguments = ("ablate", sweep, "--cache", swept.cache, "--out", swept.out, "--dry-run")
    shown = done(*arguments, "--no-trial")
    first, _, headings, base, added = shown.stdout.splitlines()
    assert first.startswith("4 runs, 1 finished: ")
    assert "; about " in first
    assert headings.split()[:3] == ["name", "seeds", "steps"]
    assert base.split()[:3] == ["base", "0,", "2"]
    assert "1 of 2" in base
    assert added.endswith("beta_start=0.0 beta_end=0.0")
    assert "not in this sweep, and left as they are: base/seed=1, no-frobenius" in shown.stderr
    assert files_below(swept.out) == before
    fields = json.loads(done(*arguments, "--no-trial", "--json").stdout.splitlines()[-1])
    assert [each["state"] for each in fields["runs"]] == ["finished", "new", "new", "new"]
    assert fields["seconds"] > 0


def test_a_trial_finds_a_student_that_cannot_be_built_and_writes_nothing(
    fork_server: ForkServerContext,
    tiny_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "trials").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "trials"))
    text = "[variant.base]\n[variant.odd]\ntrain_student.student.num_heads = 3\n"
    sweep, out = write_sweep(tmp_path / "file", text), tmp_path / "out"
    arguments = ("ablate", sweep, "--cache", tiny_cache, "--out", out, "--jobs", "2", "--dry-run")
    with forked_jobs(fork_server):
        refused = run(*arguments)
    assert refused.exit_code == 1
    assert "tried base for 4 steps: " in refused.stderr
    assert "1 problem; nothing was started:\n  odd: failed within its first steps: " in (
        refused.stderr
    )
    assert not out.exists()
    assert list((tmp_path / "trials").iterdir()) == []


def test_a_run_that_fails_is_reported_and_the_others_finish(
    fork_server: ForkServerContext, tiny_cache: Path, tmp_path: Path
) -> None:
    text = "[variant.odd]\ntrain_student.student.num_heads = 3\n[variant.base]\n"
    sweep, out = write_sweep(tmp_path / "file", text), tmp_path / "out"
    arguments = ("ablate", sweep, "--cache", tiny_cache, "--out", out, "--no-trial")
    with forked_jobs(fork_server):
        failed = run(*arguments, "--log-file", tmp_path / "log")
    assert failed.exit_code == 1
    log = out / "odd/seed=0.log"
    last = failed.stderr.splitlines()[-4:]
    assert last[0] == "Error: 1 of 2 runs failed:"
    assert last[1].startswith("  odd/seed=0: ")
    assert last[1].removeprefix("  odd/seed=0: ") in log.read_text()
    assert last[2] == f"    log: {log}"
    assert (out / "base/seed=0/model/config.json").exists()
    assert "base/seed=0: finished in " in (tmp_path / "log").read_text()


def test_all_problems_of_all_variants_are_listed_before_anything_starts(
    tiny_cache: Path, tmp_path: Path
) -> None:
    text = """
    [variant.unknown]
    train_student.alpa_start = 0.5
    [variant.lacking]
    train_student.state_mse_weight = 0.05
    [variant.large]
    train_student.batch_size = 5000
    [variant.base]
    """
    sweep, out = write_sweep(tmp_path / "file", text), tmp_path / "out"
    refused = run("ablate", sweep, "--cache", tiny_cache, "--out", out)
    assert refused.exit_code == 2
    assert "3 problems; nothing was started:" in refused.stderr
    assert "unknown: [variant.unknown] train_student.alpa_start: unknown key" in refused.stderr
    assert "lacking: train_student.state_mse_weight: the cache does not hold" in refused.stderr
    assert "large: the cache has " in refused.stderr
    assert "docs/ablations.md" in refused.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("run.json", "holds a run, and not a sweep"),
        ("manifest.json", "holds a cache"),
        ("notes", "not empty, and not a sweep"),
    ],
)
def test_a_directory_of_something_else_is_refused(
    tiny_cache: Path, tmp_path: Path, file: str, said: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / file).write_text("mine")
    refused = run("ablate", write_sweep(tmp_path / "file", ""), "--cache", tiny_cache, "--out", out)
    assert refused.exit_code == 2
    assert said in refused.stderr
    assert [path.name for path in out.iterdir()] == [file]


def test_runs_are_refused_where_the_disk_is_too_small(
    swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    more = write_sweep(tmp_path / "file", _TWO.replace("[0, 1]", "[0, 1, 2]"))
    refused = run("ablate", more, "--cache", swept.cache, "--out", swept.out, "--dry-run")
    assert refused.exit_code == 1
    assert "1.00kB are free, and the runs need up to " in refused.stderr


def test_a_sweep_that_is_killed_and_started_again_ends_with_the_same_figures(
    fork_server: ForkServerContext, tiny_cache: Path, tmp_path: Path
) -> None:
    """SIGKILL of the sweep alone: its run notices, saves, and is continued by the second sweep."""
    text = "seeds = [0, 1]\n[set]\ntrain_student.max_steps = 60\ntrain_student.save_steps = 1\n"
    sweep, out = write_sweep(tmp_path / "file", text), tmp_path / "out"
    words = ["ablate", str(sweep), "--cache", str(tiny_cache), "--out", str(out), "--no-trial"]
    first, second = out / "base/seed=0", out / "base/seed=1"
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline", *words], cwd=ROOT, stderr=subprocess.DEVNULL
    ) as process:
        while not any(first.glob("checkpoints/step-*")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    with forked_jobs(fork_server):
        result = done(*words)
    # Not vacuous: the first run was at work and ended by itself, the second had not begun.
    assert "Terminated by a signal (SIGTERM)" in (out / "base/seed=0.log").read_text()
    logs = [(out / f"base/seed={seed}.log").read_text().splitlines() for seed in (0, 1)]
    assert [sum(line.startswith("$ ") for line in log) for log in logs] == [2, 1]
    assert "all 2 runs are finished" in result.stdout
    plan, _ = planned(tmp_path / "alone", text)
    for planned_run, found in zip(plan.runs, (first, second), strict=True):
        train_run(planned_run.config, tiny_cache, tmp_path / planned_run.name)
        assert_same_run(found, tmp_path / planned_run.name)


def test_ctrl_c_lets_runs_save_and_says_how_to_go_on(tiny_cache: Path, tmp_path: Path) -> None:
    text = "[set]\ntrain_student.max_steps = 100000\ntrain_student.save_steps = 100000\n"
    sweep, out = write_sweep(tmp_path / "file", text), tmp_path / "out"
    words = ["ablate", str(sweep), "--cache", str(tiny_cache), "--out", str(out), "--no-trial"]
    place = out / "base/seed=0"
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline", *words],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_catch_interrupts,
    ) as process:
        while not (place / "metrics.jsonl").exists() or not is_held(place):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130
    assert "stopping: 1 run saves a checkpoint" in said
    assert said.endswith(
        "Interrupted. Finished runs and checkpoints are kept: run the same command again to "
        "continue.\n"
    )
    assert not is_held(place)
    assert any(place.glob("checkpoints/step-*"))


def _catch_interrupts() -> None:
    """A background job's are ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_second_sweep_in_the_same_directory_is_refused(swept: Swept, tmp_path: Path) -> None:
    import fcntl

    descriptor = os.open(swept.out, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        refused = run("ablate", swept.sweep, "--cache", swept.cache, "--out", swept.out)
    finally:
        os.close(descriptor)
    assert refused.exit_code == 1
    assert "another process runs a sweep in it" in refused.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--engine", "ray", "--jobs", "2"], "--jobs goes with --engine local"),
        (["--ray-workers", "2"], "go with --engine ray"),
        (["--ray-address", "auto", "--jobs", "2"], "go with --engine ray"),
    ],
)
def test_options_of_the_other_engine_are_refused(
    tiny_cache: Path, tmp_path: Path, words: list[str], expected: str
) -> None:
    sweep, out = write_sweep(tmp_path / "file", ""), tmp_path / "out"
    refused = run("ablate", sweep, "--cache", tiny_cache, "--out", out, *words)
    assert refused.exit_code == 2
    assert expected in refused.stderr
    assert not out.exists()
