"""Events as JSON, one object on a line; ``events`` lists their fields."""

import json
import math
import time
from collections.abc import Mapping
from typing import TextIO

from pipeline.reporting.events import Event, timestamp
from pipeline.reporting.lines import Clock, Pace
from pipeline.reporting.printable import is_control


class JsonLines:
    """Writes to ``stream``. Each line is flushed, so that a pipe sees it at once."""

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic) -> None:
        self._stream = stream
        self._pace = Pace(clock)

    def send(self, event: Event) -> None:
        """A line, unless it is progress soon after other progress."""
        if event.name == "progress" and not self._pace.is_due(*tokens_of(event)):
            return
        fields = {"event": event.name, "time": timestamp(), **event.fields}
        line = json.dumps(_finite(fields), ensure_ascii=False)
        print("".join(map(_escaped, line)), file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is held open."""


def tokens_of(event: Event) -> tuple[int, int]:
    """Tokens done and tokens in all of a "progress"."""
    done, total = event.fields["tokens_done"], event.fields["tokens_total"]
    assert isinstance(done, int), "see Event.fields"
    assert isinstance(total, int), "see Event.fields"
    return done, total


def _escaped(character: str) -> str:
    """As JSON escapes it, if it is a control character that JSON leaves as it is.

    It is then part of a string, because the rest of JSON is ASCII.
    """
    return f"\\u{ord(character):04x}" if is_control(character) else character


def _finite(value: object) -> object:
    """JSON has no NaN and no infinity."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
