"""Everything that a command says, appended to a file, each line with the time."""

from pathlib import Path

from pipeline.reporting.events import Event, timestamp
from pipeline.reporting.json_lines import tokens_of
from pipeline.reporting.lines import PlainLines
from pipeline.reporting.printable import printable

_PREFIX = {"warning": "Warning: ", "error": "Error: "}


class LogFile:
    """Progress as it goes to what is no terminal, and all other events; ``name`` is the stage."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._lines = PlainLines(name, " tok", self._append)

    def send(self, event: Event) -> None:
        """The event's lines, if it has any."""
        if event.name == "progress":
            self._lines.show(*tokens_of(event), printable(event.text, keep=""))
        elif event.text:
            self._append(_PREFIX.get(event.name, "") + event.text)

    def close(self) -> None:
        """The file is open only while it is written to: it may be moved away at any time."""

    def _append(self, text: str) -> None:
        now = timestamp()
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{now} {line}\n" for line in printable(text).splitlines()))
