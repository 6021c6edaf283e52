"""The run's figures: one line of ``metrics.jsonl`` per report, and the same to the trackers.

A resumed run drops what the interrupted one wrote after its checkpoint, so that every step stands
in the file once.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

from cache_format.atomic import atomic_file
from cache_format.strict_json import parse_object
from stages.train_student.training.trackers import TrackedRun, Tracker, make_tracker


class MetricsLog:
    """Appends to ``out/metrics.jsonl`` from step ``from_step`` on, and tells ``trackers``.

    ``config`` is what they show beside the curves. Raises ValueError where one does not start.
    """

    def __init__(
        self,
        out: Path,
        *,
        from_step: int,
        trackers: Sequence[str] = ("tensorboard",),
        config: Mapping[str, Any] | None = None,
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
            _keep_until(path, from_step)
            self._file = path.open("a", encoding="utf-8")
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
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.log(step, finite)


def _last_step(path: Path) -> int:
    return max((row["step"] for row in _rows(path)), default=0)


def _keep_until(path: Path, step: int) -> None:
    """Drop the lines of later steps, and a last line that a killed process left unfinished."""
    if not path.exists():
        return
    kept = [json.dumps(row) + "\n" for row in _rows(path) if step > 0 and row["step"] <= step]
    with atomic_file(path) as file:
        file.write("".join(kept).encode())


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        with suppress(ValueError):
            row = parse_object(line)
            if type(row.get("step")) is int:
                yield row
