"""A command's events, sent to everything that it was told to report to."""

import sys
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.reporting.events import Event, Sink
from pipeline.reporting.json_lines import JsonLines
from pipeline.reporting.log_file import LogFile
from pipeline.reporting.progress_bar import Bar
from pipeline.reporting.streams import ProgressOnStderr, ResultOnStdout, WarningsOnStderr


@dataclass(frozen=True, kw_only=True)
class ReportingOptions:
    """``--quiet``, ``--log-file`` and ``--json``."""

    quiet: bool = False
    log_file: Path | None = None
    as_json: bool = False

    def sinks(self, stage: str) -> list[Sink]:
        """What they ask for; ``stage`` is the word before its progress."""
        sinks: list[Sink] = [WarningsOnStderr() if self.quiet else ProgressOnStderr(Bar(stage))]
        if self.as_json:
            sinks.append(JsonLines(sys.stdout))
        else:
            sinks.append(ResultOnStdout(first_line_only=self.quiet))
        if self.log_file is not None:
            sinks.append(LogFile(self.log_file, stage))
        return sinks


class Reporter:
    """Sends events to ``sinks``. Inside ``with``, while the stage runs, Python's warnings are some.

    From any thread. Errors and the result may be sent after the block, when the bar has ended.
    """

    def __init__(self, sinks: Sequence[Sink], *, is_quiet: bool = False) -> None:
        self._sinks, self.is_quiet = sinks, is_quiet
        self._lock = threading.RLock()

    def send(self, event: Event) -> None:
        """To every sink."""
        with self._lock:
            for sink in self._sinks:
                sink.send(event)

    def __enter__(self) -> "Reporter":
        self._show_warning = warnings.showwarning
        warnings.showwarning = self._warned
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        warnings.showwarning = self._show_warning
        for sink in self._sinks:
            sink.close()

    def _warned(self, message: Warning | str, *_: Any, **__: Any) -> None:
        self.send(Event(name="warning", text=str(message), fields={"message": str(message)}))
