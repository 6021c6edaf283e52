"""What the files of runs and sweeps say, at a time that the test sets."""

import fcntl
import json
import os
from pathlib import Path

import pytest

from pipeline.ablation.planning.sweep_copy import log_of, write_copy
from pipeline.watch.watched import WatchedRun, Watcher, tokens_done
from tests.support.run_directories import write_run
from tests.support.sweeps import planned


def look(path: Path, seconds_later: float = 5.0) -> WatchedRun:
    """The only run, so many seconds after its last report."""
    file = path / "metrics.jsonl"
    written = file.stat().st_mtime if file.exists() else 0.0
    watched = Watcher(path, now=lambda: written + seconds_later).look()
    (run,) = watched.runs
    return run


def test_a_run_that_reports_is_running(tmp_path: Path) -> None:
    run = look(write_run(tmp_path / "run", steps=5, is_finished=False))
    assert (run.outcome, run.step, run.num_steps, run.share) == ("running", 5, 8, 5 / 8)
    assert run.tokens_per_second == 64.0
    assert run.seconds_left == 3 * 4 * 32 / 64.0
    assert run.seconds_silent == pytest.approx(5.0)
    assert tokens_done(run) == 5 * 4 * 32


def test_a_killed_run_is_silent(tmp_path: Path) -> None:
    run = look(write_run(tmp_path / "run", steps=5, is_finished=False), 600.0)
    assert (run.outcome, run.step, run.seconds_left) == ("interrupted", 5, None)


def test_a_finished_run(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    run = look(path, 1e6)
    assert (run.outcome, run.share) == ("finished", 1.0)
    assert Watcher(path).look().has_ended


def test_a_run_that_has_not_begun(tmp_path: Path) -> None:
    run = look(tmp_path)
    assert (run.outcome, run.step, run.share, run.run) == ("not begun", 0, None, None)


def test_what_is_written_meanwhile_is_seen(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", steps=2, is_finished=False)
    watcher = Watcher(path)
    assert watcher.look().runs[0].step == 2
    with open(path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 3, "train/loss": 2.0}) + '\n{"step": 4, "tr')
    assert watcher.look().runs[0].step == 3
    (path / "metrics.jsonl").unlink()
    assert watcher.look().runs[0].step == 0


def test_silence_is_seen_though_no_file_changes(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", steps=2, is_finished=False)
    now = (path / "metrics.jsonl").stat().st_mtime
    times = iter([now + 1] * 2 + [now + 1000] * 2)
    watcher = Watcher(path, now=lambda: next(times, now + 1000))
    assert watcher.look().runs[0].outcome == "running"
    assert watcher.look().runs[0].outcome == "interrupted"


def test_nothing_is_locked_or_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("a lock")

    path = write_run(tmp_path / "run", steps=2, is_finished=False)
    before = {file: os.stat(file).st_mtime_ns for file in [path, *path.rglob("*")]}
    monkeypatch.setattr(fcntl, "flock", refused)
    Watcher(path).look()
    assert before == {file: os.stat(file).st_mtime_ns for file in [path, *path.rglob("*")]}


def test_a_sweep_has_a_line_for_each_run(tmp_path: Path) -> None:
    plan, _ = planned(tmp_path / "file", "seeds = [0, 1, 2]\n")
    out = tmp_path / "sweep"
    write_copy(plan, out)
    write_run(out / "base/seed=0")
    log_of(out, "base/seed=1").write_text("$ now pipeline train-student\nError: no space left\n")
    watched = Watcher(out).look()
    assert watched.is_sweep
    assert not watched.has_ended
    assert [(run.name, run.outcome) for run in watched.runs] == [
        ("base/seed=0", "finished"),
        ("base/seed=1", "failed"),
        ("base/seed=2", "not begun"),
    ]
    log_of(out, "base/seed=2").write_text("$ now pipeline train-student\nError: no space left\n")
    assert Watcher(out).look().has_ended
    assert watched.runs[1].error == "no space left"
    assert look(out / "base/seed=2").outcome == "not begun"
    log = log_of(out, "base/seed=2")
    log.write_text("$ now pipeline train-student\n")
    begin = log.stat().st_mtime
    assert Watcher(out, now=lambda: begin + 5).look().runs[2].outcome == "running"
    assert Watcher(out, now=lambda: begin + 500).look().runs[2].outcome == "interrupted"


def test_a_run_without_its_record_s_data_has_no_time_left(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", steps=3, is_finished=False, batch_size=None)
    assert look(path).seconds_left is None
    (path / "run.json").write_text("{")
    run = look(path)
    assert run.run is not None
    assert run.run.state == "unreadable"
    assert run.outcome == "interrupted"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("manifest.json", "a cache: it holds manifest.json, and no run.json. Give the directory"),
        ("notes.txt", "neither a run nor a sweep: it holds notes.txt, and no run.json."),
        ("", "no such directory. Give the directory that train-student or ablate writes"),
    ],
)
def test_what_is_no_run_is_refused(name: str, expected: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    if name:
        place.mkdir()
        (place / name).touch()
    with pytest.raises(ValueError, match=expected):
        Watcher(place)
