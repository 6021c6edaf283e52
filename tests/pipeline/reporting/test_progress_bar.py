"""Progress on a terminal and beside one, with a clock that the tests wind."""

import io
from dataclasses import replace

import pytest

from pipeline.reporting.progress_bar import Bar, short, size
from pipeline.reports.estimate_report import EstimateReport
from tests.support.progress import caching


class Clock:
    """Time that stands still until it is wound."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class TestWithoutATerminal:
    def test_a_line_every_ten_seconds_with_rate_and_time_left(self) -> None:
        stream, clock = io.StringIO(), Clock()
        with Bar("cache", stream=stream, clock=clock) as bar:
            for second in range(25):
                clock.seconds = 100.0 + second
                bar.show(1000 + 100 * second, 10_000, "more")
        assert stream.getvalue().splitlines() == [
            "cache: 1.00k of 10.0k tok (10.0%) · more",
            "cache: 2.00k of 10.0k tok (20.0%) · 100 tok/s · 01:20 left · more",
            "cache: 3.00k of 10.0k tok (30.0%) · 100 tok/s · 01:10 left · more",
        ]

    def test_the_end_is_printed_once_however_far_the_total_is_exceeded(self) -> None:
        stream, clock = io.StringIO(), Clock()
        with Bar("verify", unit="B", stream=stream, clock=clock) as bar:
            for done in (0, 90, 100, 110, 120):
                clock.seconds += 1
                bar.show(done, 100, "")
        assert stream.getvalue().splitlines() == [
            "verify: 0 of 100B (0.0%)",
            "verify: 100 of 100B (100.0%) · 50B/s · 00:00 left",
        ]

    def test_a_total_of_zero_is_shown_as_done(self) -> None:
        stream = io.StringIO()
        with Bar("verify", stream=stream, clock=Clock()) as bar:
            bar.show(0, 0, "")
        assert stream.getvalue() == "verify: 0 of 0 tok (0.0%)\n"


class TestOnATerminal:
    def test_on_a_terminal_progress_overwrites_one_line(self) -> None:
        stream = Terminal()
        with Bar("cache", stream=stream) as bar:
            bar.show(2_000, 10_000, "at first")
            bar.show(12_000, 10_000, "at last")
        text = stream.getvalue()
        assert "\r" in text
        assert "20%" in text
        assert "2.00k/10.0k" in text
        assert "at last" in text
        assert text.count("\n") == 1  # when it is closed

    def test_a_message_is_printed_on_its_own_line(self) -> None:
        stream = Terminal()
        with Bar("cache", stream=stream) as bar:
            bar.show(1, 10, "")
            bar.say("hello")
        assert "hello\n" in stream.getvalue()


def test_an_estimate_counts_seconds_and_not_the_budget() -> None:
    stream, clock = io.StringIO(), Clock()
    bar = Bar("estimate", unit=" s", has_rate=False, stream=stream, clock=clock)
    report = EstimateReport(bar, seconds=60.0)
    report(replace(caching(0), phase="resolving", message="a sentence"))
    report(replace(caching(0), seconds=15.2, tokens_cached_this_run=2048))
    clock.seconds += 20
    report(replace(caching(0), seconds=35.2, tokens_cached_this_run=4096))
    clock.seconds += 60
    report(replace(caching(0), seconds=75.2, tokens_cached_this_run=0))
    assert stream.getvalue().splitlines() == [
        "resolving the teacher and the corpus",
        "a sentence",
        "estimate: 15 of 60 s (25.0%) · 2.05k tokens cached",
        "estimate: 35 of 60 s (58.3%) · 4.10k tokens cached",
        "estimate: 60 of 60 s (100.0%) · waiting for the first forward pass",
    ]


def test_an_estimate_shows_seconds_and_tokens_on_a_terminal() -> None:
    stream = Terminal()
    with Bar("estimate", unit=" s", has_rate=False, stream=stream) as bar:
        EstimateReport(bar, seconds=60.0)(replace(caching(5), seconds=30.0))
    assert "| 30/60 s, 5 tokens cached" in stream.getvalue().replace("30.0/60.0", "30/60")


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1000, "1.00k"), (512_000_000, "512M")]
)
def test_large_numbers_are_abbreviated(number: int, text: str) -> None:
    assert short(number) == text


def test_byte_sizes_are_abbreviated() -> None:
    assert size(1_234_567) == "1.23MB"
