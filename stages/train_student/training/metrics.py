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
from stages.train_student.training.trackers import TrackedRun, Tracker, make_tracker


class MetricsLog:
    """Appends to ``out/metrics.jsonl`` from step ``from_step`` on, and tells ``trackers``.

    ``validates_first``: that step's validation comes next, and replaces what is there of it.
    ``config`` is what they show beside the curves. Raises ValueError where one does not start.
    """

    def __init__(
        self,
        out: Path,
        *,
        from_step: int,
        validates_first: bool = False,
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
            _keep_until(path, from_step, without_last_validation=validates_first)
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


def _keep_until(path: Path, step: int, *, without_last_validation: bool) -> None:
    """Drop the lines of later steps, and a last line that a killed process left unfinished."""
    if not path.exists():
        return

    def is_kept(row: dict[str, Any]) -> bool:
        is_validation = any(name.startswith("validation/") for name in row)
        is_repeated = without_last_validation and is_validation and row["step"] == step
        return step > 0 and row["step"] <= step and not is_repeated

    kept = [json.dumps(row) + "\n" for row in _rows(path) if is_kept(row)]
    with atomic_file(path) as file:
        file.write("".join(kept).encode())


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            yield json.loads(line)
