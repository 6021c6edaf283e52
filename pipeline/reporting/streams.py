"""What goes to standard error and to standard output for people to read."""

import sys

import click

from pipeline.reporting.events import Event
from pipeline.reporting.json_lines import tokens_of
from pipeline.reporting.printable import printable
from pipeline.reporting.progress_bar import Bar


class ProgressOnStderr:
    """Progress as ``Bar`` shows it, and a line for what happens meanwhile."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar

    def send(self, event: Event) -> None:
        """Everything but the result and errors, which have their own places."""
        if event.name == "progress":
            self._bar.show(*tokens_of(event), event.text)
        elif event.name == "warning":
            self._bar.say(f"Warning: {event.text}")
        elif event.text and event.name not in ("start", "done", "error"):
            self._bar.say(event.text)

    def close(self) -> None:
        """Leave the bar where it is."""
        self._bar.close()


class WarningsOnStderr:
    """Warnings alone."""

    def send(self, event: Event) -> None:
        """A line, if it is a warning."""
        if event.name == "warning":
            print(f"Warning: {printable(event.text)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is held open."""


class ResultOnStdout:
    """What came of the run, or its first line alone."""

    def __init__(self, *, first_line_only: bool) -> None:
        self._first_line_only = first_line_only

    def send(self, event: Event) -> None:
        """Its text, if it is the last event."""
        if event.name == "done":
            text = event.text.partition("\n")[0] if self._first_line_only else event.text
            click.echo(printable(text))

    def close(self) -> None:
        """Nothing is held open."""
