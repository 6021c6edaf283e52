"""The run's figures: one line of ``metrics.jsonl`` per report, and the same to the trackers.

A resumed run drops what the interrupted one wrote after its checkpoint, so that every step stands
in the file once. The checkpoint holds the hash of the rest.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache_format.storage.atomic import publish_bytes
from stages.train_student.run_files import read_run_file
from stages.train_student.tracking.trackers import TrackedRun, Tracker, make_tracker


@dataclass(frozen=True, kw_only=True)
class MetricsMark:
    """The beginning of ``metrics.jsonl``, up to a checkpoint."""

    num_bytes: int
    sha256: str


NOTHING_WRITTEN = MetricsMark(num_bytes=0, sha256=hashlib.sha256().hexdigest())


class MetricsLog:
    """Appends to ``out/metrics.jsonl`` after ``mark``, step ``from_step``, and tells ``trackers``.

    ``config`` is what they show beside the curves; ``warn`` is told if the lines before ``mark``
    are not those that were written. Raises ValueError where a tracker does not start.
    """

    def __init__(
        self,
        out: Path,
        *,
        from_step: int,
        mark: MetricsMark = NOTHING_WRITTEN,
        trackers: Sequence[str] = ("tensorboard",),
        config: Mapping[str, Any] | None = None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        path = out / "metrics.jsonl"
        run = TrackedRun(
            out=out, from_step=from_step, last_step=_last_step(path), config=config or {}
        )
        self._trackers: list[Tracker] = []
        with ExitStack() as stack:
            for name in trackers:
                self._trackers.append(make_tracker(name, run))
                stack.callback(self._trackers[-1].close, False)
            kept = _keep_until(path, mark, warn)
            self._hash, self._num_bytes = hashlib.sha256(kept), len(kept)
            self._file = path.open("ab")
            stack.pop_all()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        # On a full disk closing fails, too: what is told is what failed first.
        with nullcontext() if error is None else suppress(OSError), ExitStack() as closing:
            closing.enter_context(self._file)
            for tracker in self._trackers:
                closing.callback(tracker.close, error is None)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One line ``{"step": …, name: value, …}``; flushed, so that ``tail -f`` shows it.

        What is not finite (the gradient's norm in a step that fp16 skipped) is no JSON: left out.
        """
        finite = finite_only(metrics)
        line = (json.dumps({"step": step, **finite}) + "\n").encode()
        self._file.write(line)
        self._file.flush()
        self._hash.update(line)
        self._num_bytes += len(line)
        for tracker in self._trackers:
            tracker.log(step, finite)

    def mark(self) -> MetricsMark:
        """All that is written by now."""
        return MetricsMark(num_bytes=self._num_bytes, sha256=self._hash.hexdigest())


def finite_only(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those that are finite, and so can stand in JSON."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _keep_until(path: Path, mark: MetricsMark, warn: Callable[[str], None]) -> bytes:
    """Drop the lines after ``mark``; returns those before. A damaged file is renamed."""
    kept = read_run_file(path)[: mark.num_bytes] if path.exists() else b""
    if hashlib.sha256(kept).hexdigest() != mark.sha256:
        kept, aside = b"", path.with_name(f"{path.name}.damaged")
        if path.exists():
            path.replace(aside)
        warn(
            f"{path}: its first {mark.num_bytes:,} bytes are not those that were written before "
            f"the checkpoint. A new file is started; the old one was renamed to {aside.name}."
        )
    publish_bytes(path, kept)
    return kept


def _last_step(path: Path) -> int:
    """The last step of which there is a line, as far as lines can be read."""
    if not path.exists():
        return 0
    steps = [0]
    for line in read_run_file(path).splitlines():
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and type(row.get("step")) is int:
                steps.append(row["step"])
    return max(steps)
