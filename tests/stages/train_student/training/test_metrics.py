"""The log of a run's figures: what is written, told to whom, and where the disk is full."""

import errno
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from stages.train_student.training.metrics import MetricsLog
from stages.train_student.training.trackers import TrackedRun

_FLUSH = "tensorboard.compat.tensorflow_stub.io.gfile.GFile.flush"


def refuse(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_is_written(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, from_step=0) as log:
        log.write(1, {"loss": 2.0, "norm": float("inf")})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 2.0}
    assert list((tmp_path / "tensorboard").iterdir())


def test_trackers_are_told_what_is_written_and_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    class Recorder:
        def __init__(self, name: str, run: TrackedRun) -> None:
            told.append((name, run.from_step, run.last_step, dict(run.config)))

        def log(self, step: int, metrics: dict[str, float]) -> None:
            told.append((step, metrics))

        def close(self, ok: bool) -> None:
            told.append(ok)

    monkeypatch.setattr("stages.train_student.training.metrics.make_tracker", Recorder)
    with MetricsLog(tmp_path, from_step=0, trackers=("one", "two"), config={"seed": 1}) as log:
        log.write(1, {"loss": 2.0, "norm": float("nan")})
        log.write(7, {"loss": 1.0})
    step = (1, {"loss": 2.0})
    later = (7, {"loss": 1.0})
    assert told[:2] == [("one", 0, 0, {"seed": 1}), ("two", 0, 0, {"seed": 1})]
    assert told[2:] == [step, step, later, later, True, True]

    told.clear()
    with pytest.raises(KeyError), MetricsLog(tmp_path, from_step=3, trackers=("one",)):
        raise KeyError
    assert told == [("one", 3, 7, {}), False]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'


def test_a_tracker_that_does_not_start_leaves_the_lines_and_closes_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with MetricsLog(tmp_path, from_step=0) as log:
        log.write(1, {"loss": 2.0})
    closed = []

    class First:
        def close(self, ok: bool) -> None:
            closed.append(ok)

    def make(name: str, run: TrackedRun) -> First:
        if name == "second":
            raise ValueError("does not start")
        return First()

    monkeypatch.setattr("stages.train_student.training.metrics.make_tracker", make)
    with pytest.raises(ValueError, match="does not start"):
        MetricsLog(tmp_path, from_step=0, trackers=("first", "second"))
    assert closed == [False]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'


def test_without_trackers_there_is_still_the_file(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, from_step=0, trackers=()) as log:
        log.write(1, {"loss": 2.0})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_full_disk_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What TensorBoard's thread meets is raised here, and is not printed there."""
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    log: Any = MetricsLog(tmp_path, from_step=0)
    worker = log._trackers[0]._board.file_writer.event_writer._async_writer._worker

    def write() -> None:
        with log:
            monkeypatch.setattr(_FLUSH, refuse)
            worker._next_flush_time = 0
            log.write(1, {"loss": 2.0})
            worker.join(timeout=10)
            log.write(2, {"loss": 2.0})

    with pytest.raises(OSError, match="No space left"):
        write()
    assert not worker.is_alive()
    assert threading.excepthook is threading.__excepthook__
    assert "Traceback" not in capfd.readouterr().err


def test_closing_does_not_hide_what_failed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        with MetricsLog(tmp_path, from_step=0) as log:
            log.write(1, {"loss": 2.0})
            monkeypatch.setattr(_FLUSH, refuse)
            raise KeyError("first")

    with pytest.raises(KeyError, match="first"):
        fail()
