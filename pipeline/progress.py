"""How far a stage is: a bar on a terminal, a plain line every ten seconds anywhere else.

In: the stages' progress reports. Out: text on stderr. Called by the commands that run a stage.
"""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

if TYPE_CHECKING:
    from stages.cache_teacher.engine.progress import CacheProgress
    from stages.train_student.training.progress import TrainProgress

_SECONDS_BETWEEN_LINES = 10.0
_WORTH_SAYING = 0.05  # of the time, spent waiting for the loader
_BAR = (
    "{desc}: {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} "
    "[{elapsed}<{remaining}, {rate_fmt}{postfix}]"
)
_BAR_WITHOUT_RATE = "{desc}: {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt}{unit}{postfix}"
_PHASES = {
    "resolving": "finding the teacher and the corpus",
    "loading teacher": "loading the teacher",
    "waiting for workers": "waiting for the cluster's workers to load the teacher",
    "corpus ended": "the corpus ended before the budget was reached",
}
_VALIDATION = {
    "validation/loss": "loss",
    "validation/perplexity": "perplexity",
    "validation/kl": "KL to teacher",
    "validation/agreement": "agreement",
    "validation/teacher_loss": "teacher's loss",
}
_FIGURES = {
    "train/loss": "loss {:.3f}",
    "train/cross_entropy": "CE {:.3f}",
    "train/kl": "KL {:.3f}",
    "train/frobenius": "L_F {:.3f}",
    "schedule/alpha": "α {:.2f}",
    "schedule/temperature": "T {:.2f}",
    "train/gradient_norm": "‖g‖ {:.2f}",
    "speed/mfu": "MFU {:.0%}",
}


class Bar:
    """How much is done of how much, the rate of this run, and the time left; use with ``with``.

    ``unit`` is counted, with a rate if it ``has_rate``. ``clock`` is what time is read from, and a
    test may wind it.
    """

    def __init__(
        self,
        name: str,
        *,
        unit: str = " tok",
        has_rate: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._unit, self._has_rate = name, unit, has_rate
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._is_terminal = self._stream.isatty()
        self._bar: Any = None
        self._first: tuple[float, int] | None = None
        self._last_line: float | None = None
        self._has_ended = False

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, num_done: int, num_total: int, figures: str) -> None:
        """Move to ``num_done`` of ``num_total``; ``figures`` stand at the end of the line."""
        num_done = min(num_done, num_total)  # the last unit may overshoot a budget
        if self._is_terminal:
            self._move(num_done, num_total, figures)
            return
        now = self._clock()
        if self._first is None:
            self._first = (now, num_done)
        is_due = self._last_line is None or now - self._last_line >= _SECONDS_BETWEEN_LINES
        is_end = num_done == num_total and not self._has_ended
        if is_due or is_end:
            self._last_line, self._has_ended = now, num_done == num_total
            begin, num_before = self._first
            share = f"{num_done / max(1, num_total):.1%}"
            done = f"{short(num_done)} of {short(num_total)}{self._unit} ({share})"
            speed = self._speed(num_done - num_before, now - begin, num_total - num_done)
            self.say(" · ".join(part for part in (f"{self._name}: {done}", speed, figures) if part))

    def say(self, line: str) -> None:
        """A line of its own, above the bar."""
        if self._is_terminal:
            tqdm.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)

    def _speed(self, num_done: int, seconds: float, num_left: int) -> str:
        """Rate and time left; nothing before there is a rate."""
        if num_done <= 0 or seconds <= 0 or not self._has_rate:
            return ""
        rate = num_done / seconds
        left = tqdm.format_interval(num_left / rate)
        return f"{short(round(rate))}{self._unit}/s · {left} left"

    def _move(self, num_done: int, num_total: int, figures: str) -> None:
        if self._bar is None:
            self._bar = tqdm(
                desc=self._name,
                total=num_total,
                initial=num_done,
                unit=self._unit,
                unit_scale=True,
                bar_format=_BAR if self._has_rate else _BAR_WITHOUT_RATE,
                dynamic_ncols=True,
                smoothing=0.05,
                file=self._stream,
            )
        self._bar.total = num_total  # what is estimated changes
        self._bar.set_postfix_str(figures, refresh=False)
        self._bar.update(num_done - self._bar.n)


class CacheReport:
    """Shows stage one's reports on ``bar``; ``last`` is the latest."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._phase = ""
        self.last: CacheProgress | None = None

    def __call__(self, progress: "CacheProgress") -> None:
        self.last = progress
        if progress.phase != self._phase:
            self._phase = progress.phase
            if progress.phase in _PHASES:
                self._bar.say(_PHASES[progress.phase])
        if progress.message:
            self._bar.say(progress.message)
        if progress.phase in ("caching", "done"):
            self._bar.show(progress.tokens_done, progress.tokens_total, cache_figures(progress))


class TrainReport:
    """Shows stage two's reports on ``bar``; everything but a step gets a line of its own."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar

    def __call__(self, progress: "TrainProgress") -> None:
        if progress.event == "step":
            self._bar.show(progress.tokens_done, progress.tokens_total, train_figures(progress))
        elif progress.event == "validation":
            self._bar.say(f"step {progress.step}: {validation_figures(progress.metrics)}")
        else:
            self._bar.say(f"step {progress.step}: {progress.message}")


def cache_figures(progress: "CacheProgress") -> str:
    """How well the device is used, bytes on disk, and where the teacher is reading."""
    parts = [
        *device_figures(progress),
        size(progress.bytes_held),
        f"unit {progress.unit}",
        f"{short(progress.documents)} documents",
        progress.corpus_position,
    ]
    return " · ".join(part for part in parts if part)


def device_figures(progress: "CacheProgress") -> list[str]:
    """The share of time that the device waited, and MFU, as far as they are known."""
    parts = []
    if progress.device_wait_share is not None:
        parts.append(f"device waited {progress.device_wait_share:.0%}")
    if progress.mfu is not None:
        parts.append(f"MFU {progress.mfu:.0%}")
    return parts


def train_figures(progress: "TrainProgress") -> str:
    """Step, loss and its terms, α, T, gradient norm, MFU, waiting and memory, where reported."""
    metrics = progress.metrics
    parts = [f"step {progress.step}/{progress.num_steps}"]
    parts += [form.format(metrics[name]) for name, form in _FIGURES.items() if name in metrics]
    if metrics.get("speed/loader_wait_share", 0.0) >= _WORTH_SAYING:
        parts.append(f"waited {metrics['speed/loader_wait_share']:.0%} for the cache")
    if "speed/peak_bytes" in metrics:
        parts.append(size(metrics["speed/peak_bytes"]))
    return " · ".join(parts)


def validation_figures(metrics: dict[str, float]) -> str:
    """A validation on one line."""
    parts = []
    for name, label in _VALIDATION.items():
        if name in metrics:
            parts.append(f"{label} {metrics[name]:.4f}")
    return "validation: " + ", ".join(parts)


def short(number: float) -> str:
    """1234567 as ``1.23M``."""
    return str(tqdm.format_sizeof(number)) if number >= 1000 else f"{number:g}"


def size(num_bytes: float) -> str:
    """Bytes in decimal units, as disks are sold."""
    return f"{tqdm.format_sizeof(num_bytes)}B"
