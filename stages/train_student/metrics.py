"""The run's figures: one line of ``metrics.jsonl`` per report, and the same in TensorBoard.

A resumed run drops what the interrupted one wrote after its checkpoint, so that every step stands
in the file once.
"""

import json
import math
from pathlib import Path

from cache_format.atomic import atomic_file


class MetricsLog:
    """Appends to ``out/metrics.jsonl`` and ``out/tensorboard``, from step ``from_step`` on."""

    def __init__(self, out: Path, *, from_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = out / "metrics.jsonl"
        _keep_until(path, from_step)
        self._file = path.open("a", encoding="utf-8")
        # Events after the step that a run resumes from are hidden by TensorBoard itself.
        self._board = SummaryWriter(
            str(out / "tensorboard"), purge_step=from_step + 1 if from_step else 0
        )

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
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
