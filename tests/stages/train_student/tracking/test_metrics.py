"""The log of a run's figures: what is written, told to whom, and where the disk is full."""

import errno
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from stages.train_student.tracking.metrics import MetricsLog, MetricsMark, _last_step
from stages.train_student.tracking.trackers import TrackedRun

_FLUSH = "tensorboard.compat.tensorflow_stub.io.gfile.GFile.flush"


def refuse(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_each_report_is_one_json_line(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, from_step=0) as log:
        log.write(1, {"loss": 2.0, "norm": float("inf")})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 2.0}
    assert list((tmp_path / "tensorboard").iterdir())


def test_trackers_receive_every_metric_and_the_outcome(
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

    monkeypatch.setattr("stages.train_student.tracking.metrics.make_tracker", Recorder)
    with MetricsLog(tmp_path, from_step=0, trackers=("one", "two"), config={"seed": 1}) as log:
        log.write(1, {"loss": 2.0, "norm": float("nan")})
        mark = log.mark()
        log.write(7, {"loss": 1.0})
    step = (1, {"loss": 2.0})
    later = (7, {"loss": 1.0})
    assert told[:2] == [("one", 0, 0, {"seed": 1}), ("two", 0, 0, {"seed": 1})]
    assert told[2:] == [step, step, later, later, True, True]

    told.clear()
    with pytest.raises(KeyError), MetricsLog(tmp_path, from_step=3, mark=mark, trackers=("one",)):
        raise KeyError
    assert told == [("one", 3, 7, {}), False]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'


def test_a_tracker_that_fails_to_start_keeps_metrics_and_closes_the_others(
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

    monkeypatch.setattr("stages.train_student.tracking.metrics.make_tracker", make)
    with pytest.raises(ValueError, match="does not start"):
        MetricsLog(tmp_path, from_step=0, trackers=("first", "second"))
    assert closed == [False]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'


def test_without_trackers_metrics_are_still_written(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, from_step=0, trackers=()) as log:
        log.write(1, {"loss": 2.0})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_full_disk_is_reported_once(
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
            worker.join(timeout=120)
            log.write(2, {"loss": 2.0})

    with pytest.raises(OSError, match="No space left"):
        write()
    assert not worker.is_alive()
    assert threading.excepthook is threading.__excepthook__
    assert "Traceback" not in capfd.readouterr().err


def test_an_error_while_closing_does_not_hide_the_first_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        with MetricsLog(tmp_path, from_step=0) as log:
            log.write(1, {"loss": 2.0})
            monkeypatch.setattr(_FLUSH, refuse)
            raise KeyError("first")

    with pytest.raises(KeyError, match="first"):
        fail()


LINES = [{"step": step, "loss": 1 / step} for step in (1, 2, 4)]


def written(path: Path, num_marked: int) -> MetricsMark:
    """A log of ``LINES``, marked after some of them."""
    with MetricsLog(path, from_step=0, trackers=()) as log:
        mark = log.mark()
        for number, line in enumerate(LINES, start=1):
            log.write(int(line["step"]), {"loss": line["loss"]})
            if number == num_marked:
                mark = log.mark()
    return mark


def test_metrics_after_the_resume_mark_are_dropped(tmp_path: Path) -> None:
    mark = written(tmp_path, 2)
    with MetricsLog(tmp_path, from_step=2, mark=mark, trackers=()) as log:
        assert log.mark() == mark
        log.write(4, {"loss": 0.25})
        again = log.mark()
    path = tmp_path / "metrics.jsonl"
    assert [json.loads(line) for line in path.read_text().splitlines()] == LINES
    (tmp_path / "other").mkdir()
    assert again == written(tmp_path / "other", 3)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "not text"])
def test_metrics_changed_before_the_resume_mark_are_reported_and_set_aside(
    tmp_path: Path, damage: str
) -> None:
    mark = written(tmp_path, 2)
    path = tmp_path / "metrics.jsonl"
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"flip": bytes(data), "cut": bytes(data[:20])}.get(damage, b"\xff[]\n5\n"))
    told: list[str] = []
    with MetricsLog(tmp_path, from_step=2, mark=mark, trackers=(), warn=told.append) as log:
        log.write(3, {"loss": 0.5})
    assert "not those that were written before the checkpoint" in told[0]
    assert json.loads(path.read_text()) == {"step": 3, "loss": 0.5}
    assert path.with_name("metrics.jsonl.damaged").exists() == (damage != "gone")


def test_damaged_metrics_after_the_resume_mark_are_skipped(tmp_path: Path) -> None:
    """The last of them is told to the trackers; it may be anything."""
    mark = written(tmp_path, 3)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'[]\n7\n{"step": "x"}\n{"loss": 1}\n\xff\n{"step": 5}\n' + b"[" * 9999)
    assert _last_step(tmp_path / "metrics.jsonl") == 5
    with MetricsLog(tmp_path, from_step=4, mark=mark, trackers=()) as log:
        assert log.mark() == mark
