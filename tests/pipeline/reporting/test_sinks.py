"""Who receives which event, and as what."""

import io
import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from pipeline.reporting.events import Event, EventName
from pipeline.reporting.json_lines import JsonLines
from pipeline.reporting.log_file import LogFile
from pipeline.reporting.progress_bar import Bar
from pipeline.reporting.reporter import Reporter, ReportingOptions
from pipeline.reporting.streams import ProgressOnStderr, ResultOnStdout, WarningsOnStderr

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d")


def progress(done: int, **fields: Any) -> Event:
    return Event(
        name="progress", text="figures", fields={"tokens_done": done, "tokens_total": 100, **fields}
    )


def said(name: EventName, text: str = "said") -> Event:
    return Event(name=name, text=text, fields={"message": text})


EVENTS = [
    said("start"),
    said("phase", ""),
    progress(10),
    said("warning", "careful"),
    said("checkpoint"),
    said("done", "first\nsecond"),
    said("error", "wrong"),
]


def test_standard_error_receives_progress_messages_and_warnings() -> None:
    stream = io.StringIO()
    sink = ProgressOnStderr(Bar("cache", stream=stream))
    for event in EVENTS:
        sink.send(event)
    assert stream.getvalue().splitlines() == [
        "cache: 10 of 100 tok (10.0%) · figures",
        "Warning: careful",
        "said",
    ]


def test_quiet_keeps_warnings_errors_and_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    for event in EVENTS:
        WarningsOnStderr().send(event)
        ResultOnStdout(first_line_only=True).send(event)
    captured = capsys.readouterr()
    assert captured.err == "Warning: careful\n"
    assert captured.out == "first\n"


def test_standard_output_receives_the_result_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for event in EVENTS:
        ResultOnStdout(first_line_only=False).send(event)
    assert capsys.readouterr().out == "first\nsecond\n"


def test_a_log_file_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    sink = LogFile(path, "cache")
    for event in EVENTS:
        sink.send(event)
    before, *lines = path.read_text().splitlines()
    assert before == "before"
    times, texts = zip(*(line.split(" ", 1) for line in lines), strict=True)
    assert all(_TIME.fullmatch(time) for time in times)
    assert list(texts) == [
        "said",
        "cache: 10 of 100 tok (10.0%) · figures",
        "Warning: careful",
        "said",
        "first",
        "second",
        "Error: wrong",
    ]


HOSTILE = "\x1b]0;PWNED\x07\x1b[2J\u202e_file"
ESCAPED = r"\x1b]0;PWNED\x07\x1b[2J\u202e_file"
HOSTILE_EVENTS = [
    said("message", HOSTILE),
    said("warning", HOSTILE),
    Event(name="progress", text=f"a\n{HOSTILE}", fields=progress(10).fields),
    said("done", HOSTILE),
]


class TestControlCharacters:
    """Names of files and keys that are a stranger's."""

    def test_standard_error_escapes_control_characters(self) -> None:
        stream = io.StringIO()
        sink = ProgressOnStderr(Bar("cache", stream=stream))
        for event in HOSTILE_EVENTS:
            sink.send(event)
        assert stream.getvalue().splitlines() == [
            ESCAPED,
            f"Warning: {ESCAPED}",
            rf"cache: 10 of 100 tok (10.0%) · a\n{ESCAPED}",
        ]

    def test_a_terminal_progress_bar_escapes_control_characters(self) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        stream = Terminal()
        with Bar("cache", stream=stream) as bar:
            bar.show(1, 2, HOSTILE)
            bar.say(HOSTILE)
        assert ESCAPED in stream.getvalue()
        assert not {"\x07", "\u202e"} & set(stream.getvalue())

    def test_quiet_output_and_the_result_escape_control_characters(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for event in HOSTILE_EVENTS:
            WarningsOnStderr().send(event)
            ResultOnStdout(first_line_only=False).send(event)
        captured = capsys.readouterr()
        assert captured.err == f"Warning: {ESCAPED}\n"
        assert captured.out == f"{ESCAPED}\n"

    def test_a_log_file_escapes_control_characters(self, tmp_path: Path) -> None:
        sink = LogFile(tmp_path / "log", "cache")
        for event in HOSTILE_EVENTS:
            sink.send(event)
        texts = [line.split(" ", 1)[1] for line in (tmp_path / "log").read_text().splitlines()]
        assert texts == [
            ESCAPED,
            f"Warning: {ESCAPED}",
            rf"cache: 10 of 100 tok (10.0%) · a\n{ESCAPED}",
            ESCAPED,
        ]

    def test_json_lines_hold_the_exact_text_in_json_escapes(self) -> None:
        stream, text = io.StringIO(), HOSTILE + "\x9b\x7f東"
        JsonLines(stream).send(said("message", text))
        assert json.loads(stream.getvalue())["message"] == text
        assert not set("\x1b\x07\x9b\x7f\u202e") & set(stream.getvalue())
        assert "東" in stream.getvalue()


class TestJsonLines:
    def lines(self, *events: Event, seconds: float = 0.0) -> list[dict[str, Any]]:
        stream, now = io.StringIO(), 0.0

        def clock() -> float:
            nonlocal now
            now += seconds
            return now

        sink = JsonLines(stream, clock)
        for event in events:
            sink.send(event)
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    def test_json_lines_hold_one_event_a_line(self) -> None:
        found = self.lines(*EVENTS)
        assert [line["event"] for line in found] == [event.name for event in EVENTS]
        assert all(_TIME.fullmatch(line["time"]) for line in found)
        assert found[3]["message"] == "careful"

    def test_json_progress_comes_every_ten_seconds_and_at_the_end(self) -> None:
        events = [progress(done) for done in (0, 20, 40, 60, 80, 99, 100, 110)]
        done = [line["tokens_done"] for line in self.lines(*events, seconds=4.0)]
        assert done == [0, 60, 100]

    def test_non_finite_numbers_are_null_in_json(self) -> None:
        metrics = {"train/gradient_norm": float("inf"), "train/loss": 1.0}
        (line,) = self.lines(progress(0, metrics=metrics, mfu=float("nan")))
        assert line["metrics"] == {"train/gradient_norm": None, "train/loss": 1.0}
        assert line["mfu"] is None


class TestReporter:
    def test_warnings_of_the_stage_are_events(self) -> None:
        events: list[Event] = []

        class RecordingSink:
            send = staticmethod(events.append)

            def close(self) -> None: ...

        before = warnings.showwarning
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            with Reporter([RecordingSink()]):
                warnings.warn("slow", RuntimeWarning, stacklevel=1)
        assert events == [Event(name="warning", text="slow", fields={"message": "slow"})]
        assert warnings.showwarning is before

    @pytest.mark.parametrize(
        ("options", "kinds"),
        [
            ({}, [ProgressOnStderr, ResultOnStdout]),
            ({"quiet": True}, [WarningsOnStderr, ResultOnStdout]),
            ({"as_json": True}, [ProgressOnStderr, JsonLines]),
            ({"quiet": True, "as_json": True}, [WarningsOnStderr, JsonLines]),
            ({"log_file": Path("log")}, [ProgressOnStderr, ResultOnStdout, LogFile]),
        ],
    )
    def test_every_sink_receives_the_events_it_asked_for(
        self, options: dict[str, Any], kinds: list[type]
    ) -> None:
        assert [type(sink) for sink in ReportingOptions(**options).sinks("cache")] == kinds
