"""The run's figures: one line of ``metrics.jsonl`` per report, and the same in TensorBoard.

A resumed run drops what the interrupted one wrote after its checkpoint, so that every step stands
in the file once.
"""

import json
import math
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from cache_format.atomic import atomic_file


class MetricsLog:
    """Appends to ``out/metrics.jsonl`` and ``out/tensorboard``, from step ``from_step`` on."""

    def __init__(self, out: Path, *, from_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = out / "metrics.jsonl"
        _keep_until(path, from_step)
        with ExitStack() as stack:
            stack.enter_context(_told_once())
            self._file = stack.enter_context(path.open("a", encoding="utf-8"))
            # Events after the step that a run resumes from are hidden by TensorBoard itself.
            self._board = SummaryWriter(
                str(out / "tensorboard"), purge_step=from_step + 1 if from_step else 0
            )
            self._open = stack.pop_all()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        # On a full disk closing fails, too: what is told is what failed first.
        with nullcontext() if error is None else suppress(OSError), self._open:
            try:
                if error is None:
                    self._board.flush()  # raises what stopped TensorBoard's thread, if anything did
            finally:
                self._board.close()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One line ``{"step": …, name: value, …}``; flushed, so that ``tail -f`` shows it.

        What is not finite (the gradient's norm in a step that fp16 skipped) is no JSON: left out.
        """
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        for name, value in finite.items():
            self._board.add_scalar(name, value, step)


@contextmanager
def _told_once() -> Iterator[None]:
    """Keep TensorBoard's thread from printing a refusal of the system's, such as a full disk.

    The next write, or the last flush, raises the same.
    """
    usual = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        is_tensorboard = type(failure.thread).__module__.partition(".")[0] == "tensorboard"
        if not (is_tensorboard and issubclass(failure.exc_type, OSError)):
            usual(failure)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = usual


def _keep_until(path: Path, step: int) -> None:
    """Drop the lines of later steps, and a last line that a killed process left unfinished."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if step > 0 and json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:
            continue
    with atomic_file(path) as file:
        file.write("".join(kept).encode())
