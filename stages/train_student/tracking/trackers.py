"""Where a run's figures are shown: TensorBoard, Weights & Biases, trackio.

In: a run, and the figures of its steps. Out: event files, or a run of that name with the service.
Made and called by ``metrics``. The packages other than TensorBoard are imported only if asked for.

W&B and trackio know a run by its name, which is kept in ``out/trackers.json``, so that the curves
of a resumed run go on. Neither takes a step back: what they were told of steps after the checkpoint
stays, and these steps are not told again. A run that begins anew gets a new name.
"""

import importlib
import os
import re
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from stages.train_student.run_files import parse_run_file, write_run_file

_PROJECT = "xlstm-distill"


class Tracker(Protocol):
    """Receives metrics, each step's at most once."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Take the figures of ``step``, which are finite."""

    def close(self, ok: bool) -> None:
        """Write out what is pending; ``ok`` says whether the run has ended as it should."""


def require_trackers(names: Sequence[str]) -> None:
    """Raise ValueError where the package of one of ``names`` is not installed."""
    for name in names:
        found = find_spec(name)
        if found is None or found.origin is None:  # or there is only a directory of this name
            raise ValueError(
                f"train_student.report_to: {name} is not installed. Install it with "
                f"`pip install {name}`, or leave it out of train_student.report_to."
            )


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What trackers know of a run when it begins or goes on."""

    out: Path
    """Its directory."""
    from_step: int
    """The step of the checkpoint that it goes on from; 0 where it begins anew."""
    last_step: int
    """The last step that was reported before, at or after the checkpoint."""
    config: Mapping[str, Any]
    """What is shown beside the curves."""


def make_tracker(name: str, run: TrackedRun) -> Tracker:
    """The tracker ``name`` of ``run``. Raises ValueError where it does not start."""
    return TensorBoard(run) if name == "tensorboard" else HostedRun(name, run)


class TensorBoard:
    """Event files in ``out/tensorboard``."""

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with ExitStack() as stack:
            stack.enter_context(_told_once())
            # Events after the step that a run resumes from are hidden by TensorBoard itself.
            self._board = SummaryWriter(
                str(run.out / "tensorboard"),
                purge_step=run.from_step + 1 if run.from_step else 0,
            )
            self._open = stack.pop_all()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Raises OSError where an earlier step could not be written."""
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def close(self, ok: bool) -> None:
        """Raises OSError where a step could not be written, if the run was ``ok`` until then."""
        with self._open:
            try:
                if ok:
                    self._board.flush()  # raises what stopped TensorBoard's thread, if anything did
            finally:
                self._board.close()


class HostedRun:
    """A run of ``wandb`` or ``trackio``, which are used in one way.

    The project is ``xlstm-distill``, unless ``WANDB_PROJECT`` or ``TRACKIO_PROJECT`` names another.
    All else is the packages' own: ``WANDB_MODE=offline``, ``TRACKIO_SPACE_ID``, and so on.
    """

    def __init__(self, package: str, run: TrackedRun) -> None:
        module = importlib.import_module(package)
        name, self._told_step = _identify(package, run)
        settings: dict[str, Any] = {
            "project": os.environ.get(f"{package.upper()}_PROJECT", _PROJECT),
            "name": name,
            "config": dict(run.config),
            "resume": "allow" if run.from_step else "never",
        }
        if package == "wandb":
            settings |= {"id": name, "dir": str(run.out)}
        try:
            self._run = module.init(**settings)
        except getattr(module, "Error", ValueError) as error:
            reason = str(error).rstrip(".")
            raise ValueError(
                f"train_student.report_to: {package} did not start: {reason}. Set it up, or leave "
                "it out of train_student.report_to."
            ) from error
        self._takes_exit_code = package == "wandb"

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Hand the figures over; they are sent in the background."""
        if step >= self._told_step:  # of the last one, it may have been told only a part
            self._run.log(metrics, step=step)

    def close(self, ok: bool) -> None:
        """Wait until all is sent, and mark a run that failed as such, if the service can."""
        if self._takes_exit_code:
            self._run.finish(exit_code=0 if ok else 1)
        else:
            self._run.finish()


@dataclass(frozen=True, kw_only=True)
class _KnownRun:
    """A run as one tracker knows it."""

    name: str
    told_step: int


@dataclass(frozen=True, kw_only=True)
class _KnownRuns:
    """What ``trackers.json`` says, by tracker."""

    runs: dict[str, _KnownRun]


def _identify(package: str, run: TrackedRun) -> tuple[str, int]:
    """The run's name with ``package``, and the last step that it was told there."""
    file = run.out / "trackers.json"
    runs = _known_runs(file)
    if run.from_step > 0 and package in runs:
        name, told_step = runs[package].name, max(runs[package].told_step, run.last_step)
    else:
        # Characters that no service minds, and an ending that no directory of this name shares.
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", run.out.resolve().name)[:64]
        name, told_step = f"{readable}-{secrets.token_hex(4)}", 0
    known = _KnownRun(name=name, told_step=told_step)
    write_run_file(file, _KnownRuns(runs=runs | {package: known}))
    return name, told_step


def _known_runs(file: Path) -> dict[str, _KnownRun]:
    """Raises ValueError where ``file`` is damaged."""
    if not file.exists():
        return {}
    step = "Delete it: the trackers then show the rest of the run under a new name."
    return parse_run_file(_KnownRuns, file.read_bytes(), file, step).runs


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
