"""Progress on a terminal and beside one, with a clock that the tests wind."""

import io
from dataclasses import replace

import pytest

from pipeline.estimate import EstimateReport
from pipeline.progress import (
    Bar,
    CacheReport,
    TrainReport,
    cache_figures,
    device_figures,
    short,
    size,
)
from stages.cache_teacher.engine.progress import CacheProgress, Phase
from stages.train_student.training.progress import TrainProgress


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


def caching(tokens_done: int, phase: Phase = "caching") -> CacheProgress:
    return CacheProgress(
        phase=phase,
        tokens_done=tokens_done,
        tokens_total=10_000,
        tokens_cached_this_run=tokens_done,
        bytes_written=1_000_000,
        bytes_held=1_500_000,
        unit=3,
        corpus_position="a.parquet, documents 30-39",
        documents=2000,
    )


def test_what_is_known_of_the_device() -> None:
    assert device_figures(caching(1)) == []
    known = replace(caching(1), device_wait_share=0.034, mfu=0.517)
    assert device_figures(known) == ["device waited 3%", "MFU 52%"]
    assert cache_figures(known).startswith("device waited 3% · MFU 52% · 1.50MB · unit 3")


class TestBesideATerminal:
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

    def test_the_end_is_said_once_however_far_it_is_overshot(self) -> None:
        stream, clock = io.StringIO(), Clock()
        with Bar("verify", unit="B", stream=stream, clock=clock) as bar:
            for done in (0, 90, 100, 110, 120):
                clock.seconds += 1
                bar.show(done, 100, "")
        assert stream.getvalue().splitlines() == [
            "verify: 0 of 100B (0.0%)",
            "verify: 100 of 100B (100.0%) · 50B/s · 00:00 left",
        ]

    def test_nothing_to_do(self) -> None:
        stream = io.StringIO()
        with Bar("verify", stream=stream, clock=Clock()) as bar:
            bar.show(0, 0, "")
        assert stream.getvalue() == "verify: 0 of 0 tok (0.0%)\n"


class TestOnATerminal:
    def test_one_line_is_written_over(self) -> None:
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

    def test_a_message_stands_on_a_line_of_its_own(self) -> None:
        stream = Terminal()
        with Bar("cache", stream=stream) as bar:
            bar.show(1, 10, "")
            bar.say("hello")
        assert "hello\n" in stream.getvalue()


class TestCacheReport:
    def test_phases_and_figures(self) -> None:
        stream = io.StringIO()
        with Bar("cache", stream=stream, clock=Clock()) as bar:
            report = CacheReport(bar)
            for phase in ("resolving", "resolving", "loading teacher"):
                report(caching(0, phase))
            report(caching(500))
            report(caching(500, "corpus ended"))
        assert stream.getvalue().splitlines() == [
            "finding the teacher and the corpus",
            "loading the teacher",
            "cache: 500 of 10.0k tok (5.0%) · 1.50MB · unit 3 · 2.00k documents · "
            "a.parquet, documents 30-39",
            "the corpus ended before the budget was reached",
        ]


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
        "finding the teacher and the corpus",
        "a sentence",
        "estimate: 15 of 60 s (25.0%) · 2.05k tokens cached",
        "estimate: 35 of 60 s (58.3%) · 4.10k tokens cached",
        "estimate: 60 of 60 s (100.0%) · waiting for the first forward pass",
    ]


def test_an_estimate_on_a_terminal() -> None:
    stream = Terminal()
    with Bar("estimate", unit=" s", has_rate=False, stream=stream) as bar:
        EstimateReport(bar, seconds=60.0)(replace(caching(5), seconds=30.0))
    assert "| 30/60 s, 5 tokens cached" in stream.getvalue().replace("30.0/60.0", "30/60")


class TestTrainReport:
    def report(self, progress: TrainProgress) -> str:
        stream = io.StringIO()
        with Bar("train", stream=stream, clock=Clock()) as bar:
            TrainReport(bar)(progress)
        return stream.getvalue()

    def test_step(self) -> None:
        metrics = {
            "train/loss": 3.14159,
            "schedule/alpha": 0.677,
            "schedule/temperature": 1.59,
            "train/gradient_norm": 0.5,
            "train/kl": 1.0,
            "speed/mfu": 0.354,
            "speed/loader_wait_share": 0.06,
            "speed/peak_bytes": 5.1e9,
        }
        progress = TrainProgress(
            event="step", step=7, num_steps=10, tokens_done=700, tokens_total=1000, metrics=metrics
        )
        assert self.report(progress) == (
            "train: 700 of 1.00k tok (70.0%) · step 7/10 · loss 3.142 · KL 1.000 · α 0.68 · "
            "T 1.59 · ‖g‖ 0.50 · MFU 35% · waited 6% for the cache · 5.10GB\n"
        )

    def test_validation(self) -> None:
        progress = TrainProgress(
            event="validation",
            step=7,
            num_steps=10,
            tokens_done=700,
            tokens_total=1000,
            metrics={"validation/teacher_loss": 2.5, "validation/loss": 3.0, "other": 1.0},
        )
        assert self.report(progress) == "step 7: validation: loss 3.0000, teacher's loss 2.5000\n"

    @pytest.mark.parametrize("event", ["checkpoint", "message"])
    def test_messages(self, event: str) -> None:
        progress = TrainProgress(
            event=event,  # type: ignore[arg-type]
            step=7,
            num_steps=10,
            tokens_done=700,
            tokens_total=1000,
            message="resuming from x",
        )
        assert self.report(progress) == "step 7: resuming from x\n"


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1000, "1.00k"), (512_000_000, "512M")]
)
def test_short(number: int, text: str) -> None:
    assert short(number) == text


def test_size() -> None:
    assert size(1_234_567) == "1.23MB"
