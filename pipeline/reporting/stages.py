"""The two stages' progress as events, with the figures that people read."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from pipeline.reporting.events import Event
from pipeline.reporting.lines import short, size
from stages.train_student.tracking.metric_labels import (
    STEP,
    VALIDATION,
    cache_labels,
    of_cache,
    progress_figures,
)

if TYPE_CHECKING:
    from stages.cache_teacher.reporting.progress import CacheProgress
    from stages.train_student.tracking.run_progress import TrainProgress

Send = Callable[[Event], None]

_WORTH_SAYING = 0.05  # of the time, spent waiting for the loader
_OF_CACHE = ("validation/loss", "validation/kl")
_PHASES = {
    "resolving": "resolving the teacher and the corpus",
    "loading teacher": "loading the teacher",
    "fitting": "fitting to the hidden states of the first unit of text",
    "waiting for workers": "waiting for the cluster's workers to load the teacher",
    "corpus ended": "the corpus ended before the token budget was reached",
}


class CacheReport:
    """Sends stage one's reports to ``send``; ``last`` is the latest."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._phase = ""
        self.last: CacheProgress | None = None

    def __call__(self, progress: "CacheProgress") -> None:
        self.last = progress
        if progress.phase != self._phase:
            self._phase = progress.phase
            if progress.phase != "done":  # of which the event "done" says more
                fields = {"phase": progress.phase}
                self._send(Event(name="phase", text=_PHASES.get(progress.phase, ""), fields=fields))
        if progress.message:
            self._send(
                Event(name="message", text=progress.message, fields={"message": progress.message})
            )
        if progress.phase in ("caching", "done"):
            fields = asdict(progress)
            del fields["phase"], fields["missing_units"], fields["message"]
            self._send(Event(name="progress", text=cache_figures(progress), fields=fields))


class TrainReport:
    """Sends stage two's reports to ``send``. Validation's KL is at ``kl_temperature``."""

    def __init__(self, send: Send, kl_temperature: float) -> None:
        self._send, self._kl_temperature = send, kl_temperature

    def __call__(self, progress: "TrainProgress") -> None:
        where = f"step {progress.step}: "
        at_step = {"step": progress.step}
        if progress.event == "step":
            fields = {
                **at_step,
                "num_steps": progress.num_steps,
                "tokens_done": progress.tokens_done,
                "tokens_total": progress.tokens_total,
                "metrics": progress.metrics,
            }
            self._send(Event(name="progress", text=train_figures(progress), fields=fields))
        elif progress.event == "validation":
            text = where + "validation: " + self.validation_figures(progress.metrics)
            fields = {**at_step, "metrics": progress.metrics}
            fields["kl_temperature"] = self._kl_temperature
            self._send(Event(name="validation", text=text, fields=fields))
        elif progress.event == "checkpoint":
            text, fields = where + f"checkpoint {progress.message}", {"path": progress.message}
            self._send(Event(name="checkpoint", text=text, fields=at_step | fields))
        else:
            text, fields = where + progress.message, {"message": progress.message}
            self._send(Event(name=progress.event, text=text, fields=at_step | fields))

    def validation_figures(self, metrics: Mapping[str, float]) -> str:
        """A validation on one line; of several caches, loss and KL of each follow the whole."""
        whole = progress_figures(VALIDATION, metrics, self._kl_temperature)
        parts = [", ".join(whole)]
        for label in cache_labels(metrics):
            own = {
                key: metrics[name] for key in _OF_CACHE if (name := of_cache(label, key)) in metrics
            }
            figures = progress_figures(VALIDATION, own, self._kl_temperature)
            parts.append(f"{label}: {', '.join(figures)}")
        return "; ".join(parts)


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
    """The share of time without a forward pass, and MFU, as far as they are known."""
    parts = []
    if progress.device_wait_share is not None:
        parts.append(f"teacher idle {progress.device_wait_share:.0%}")
    if progress.mfu is not None:
        parts.append(f"MFU {progress.mfu:.0%}")
    return parts


def train_figures(progress: "TrainProgress") -> str:
    """Step, loss and its terms, α, gradient norm, MFU, waiting and memory, where reported."""
    metrics = progress.metrics
    parts = [f"step {progress.step}/{progress.num_steps}"]
    parts += progress_figures(STEP, metrics, metrics.get("schedule/temperature", 1.0))
    if metrics.get("speed/loader_wait_share", 0.0) >= _WORTH_SAYING:
        parts.append(f"waited {metrics['speed/loader_wait_share']:.0%} for the cache")
    if "speed/peak_bytes" in metrics:
        parts.append(f"peak {size(metrics['speed/peak_bytes'])}")
    return " · ".join(parts)
