"""The log of a run's figures where the disk is full."""

import errno
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from stages.train_student.training.metrics import MetricsLog

_FLUSH = "tensorboard.compat.tensorflow_stub.io.gfile.GFile.flush"


def refuse(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_is_written(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, from_step=0) as log:
        log.write(1, {"loss": 2.0, "norm": float("inf")})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 2.0}
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_full_disk_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What TensorBoard's thread meets is raised here, and is not printed there."""
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    log: Any = MetricsLog(tmp_path, from_step=0)
    worker = log._board.file_writer.event_writer._async_writer._worker

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
