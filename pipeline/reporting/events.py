"""The events of ``cache-teacher``, ``train-student`` and ``ablate``, and what receives them.

With ``--json`` each is one JSON object on a line of standard output. All have ``event`` and
``time`` (ISO 8601, local time with its offset); the others, by ``event``:

``start``
    ``command``, ``version``, ``recipe`` (as given), ``out``; ``train-student``: ``cache``.
    ``ablate``: ``sweep`` in place of ``recipe``, and ``cache``.
``phase``
    ``cache-teacher``: ``phase``, one of "resolving", "loading teacher", "fitting", "waiting for
    workers", "caching", "corpus ended".
``progress``
    At most one every ten seconds, and one when all is done. ``cache-teacher``: the fields of
    ``CacheProgress`` (``stages/cache_teacher/reporting/progress.py``): ``tokens_done``,
    ``tokens_total``, ``tokens_cached_this_run``, ``bytes_written``, ``bytes_held``, ``unit``,
    ``units_made``, ``corpus_position``, ``documents``, ``seconds``, ``device_wait_share``, ``mfu``.
    ``train-student``: ``step``, ``num_steps``, ``tokens_done``, ``tokens_total`` and ``metrics``,
    whose names are those of ``metrics.jsonl``. ``ablate``: ``tokens_done`` and ``tokens_total`` of
    all runs, ``runs_finished``, ``runs_failed``, ``runs_total``, ``running`` (names).
``validation``
    ``step``, ``metrics`` as in ``metrics.jsonl``, ``kl_temperature`` (T of "validation/kl").
``checkpoint``
    ``step``, ``path``.
``message``, ``warning``
    ``message``; ``step`` where it came from a training run, ``run`` where it is about one of a
    sweep's.
``done``
    ``cache-teacher``: ``out`` and what ``--summary`` writes. ``cache-teacher --dry-run``: see
    ``pipeline/reports/dry_run.py``. ``train-student``: ``out``, ``model``, ``metrics`` of the last
    validation. ``ablate``: ``out``, ``runs`` (their number). ``ablate --dry-run``: see
    ``pipeline/ablation/planning/overview.py``. Always the last line of a run that succeeded.
``error``
    ``message``, ``exit_code``. The last line of a run that failed, or was interrupted. A usage
    error that comes before the command itself (an unknown option) is on standard error alone.

A number that is not finite is null.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

EventName = Literal[
    "start", "phase", "progress", "validation", "checkpoint", "message", "warning", "done", "error"
]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened, for people and for programs."""

    name: EventName
    text: str = ""
    """What people read, may be several lines or none; of "progress", the figures beside it."""
    fields: Mapping[str, object] = field(default_factory=dict)
    """What programs read, as JSON values; "progress" has ``tokens_done`` and ``tokens_total``."""


class Sink(Protocol):
    """Receives every event of a command, from one thread at a time."""

    def send(self, event: Event) -> None: ...

    def close(self) -> None:
        """The stage has ended. What came of it may still be sent."""


def timestamp() -> str:
    """Now."""
    return datetime.now().astimezone().isoformat(timespec="milliseconds")
