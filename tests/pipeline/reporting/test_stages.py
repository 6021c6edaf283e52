"""The stages' reports as events, and the words in them."""

from dataclasses import replace
from typing import Any

import pytest

from pipeline.reporting.events import Event
from pipeline.reporting.stages import CacheReport, TrainReport, cache_figures, device_figures
from stages.train_student.tracking.run_progress import TrainProgress
from tests.support.progress import caching


def training(event: Any, **changes: Any) -> TrainProgress:
    return TrainProgress(
        event=event, step=7, num_steps=10, tokens_done=700, tokens_total=1000, **changes
    )


def test_progress_shows_only_known_figures_of_the_device() -> None:
    assert device_figures(caching(1)) == []
    known = replace(caching(1), device_wait_share=0.034, mfu=0.517)
    assert device_figures(known) == ["teacher idle 3%", "MFU 52%"]
    assert cache_figures(known).startswith("teacher idle 3% · MFU 52% · 1.50MB · unit 3")


def test_cache_progress_is_reported_once_per_phase() -> None:
    events: list[Event] = []
    report = CacheReport(events.append)
    for phase in ("resolving", "resolving", "loading teacher"):
        report(caching(0, phase))
    report(caching(500))
    report(caching(10_000, "corpus ended"))
    report(caching(10_000, "done"))
    assert [(event.name, event.text) for event in events] == [
        ("phase", "resolving the teacher and the corpus"),
        ("phase", "loading the teacher"),
        ("phase", ""),
        (
            "progress",
            "1.50MB · unit 3 · 2.00k documents · a.parquet, documents 30-39",
        ),
        ("phase", "the corpus ended before the token budget was reached"),
        ("progress", cache_figures(caching(10_000))),
    ]
    assert events[1].fields == {"phase": "loading teacher"}
    assert events[3].fields["tokens_done"] == 500
    assert report.last == caching(10_000, "done")


def report(progress: TrainProgress, kl_temperature: float = 1.0) -> Event:
    events: list[Event] = []
    TrainReport(events.append, kl_temperature)(progress)
    (event,) = events
    return event


def test_a_step_names_the_temperature_of_its_kl() -> None:
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
    event = report(training("step", metrics=metrics))
    assert event.name == "progress"
    assert event.text == (
        "step 7/10 · loss 3.142 · KL(T=1.59) 1.000 · α 0.68 · grad norm 0.50 · MFU 35% · "
        "waited 6% for the cache · peak 5.10GB"
    )
    assert event.fields["tokens_done"] == 700
    assert event.fields["metrics"] == metrics


@pytest.mark.parametrize(("temperature", "shown"), [(1.0, "1"), (4 / 3, "1.33")])
def test_a_validation_names_the_temperature_of_its_kl(temperature: float, shown: str) -> None:
    metrics = {"validation/teacher_loss": 2.5, "validation/loss": 3.0, "validation/kl": 0.5}
    event = report(training("validation", metrics=metrics | {"other": 1.0}), temperature)
    assert event.name == "validation"
    assert event.text == (
        f"step 7: validation: loss 3.0000, KL(T={shown}) to teacher 0.5000, teacher's loss 2.5000"
    )
    assert event.fields["kl_temperature"] == temperature


def test_a_validation_of_several_caches_shows_each() -> None:
    metrics = {
        **{"validation/loss": 3.0, "validation/kl": 0.5},
        **{"validation/web/loss": 2.0, "validation/web/kl": 0.25, "validation/web/positions": 9},
        **{"validation/math/loss": 4.0, "validation/math/ece": 0.1},
    }
    assert report(training("validation", metrics=metrics)).text == (
        "step 7: validation: loss 3.0000, KL(T=1) to teacher 0.5000; "
        "web: loss 2.0000, KL(T=1) to teacher 0.2500; math: loss 4.0000"
    )


@pytest.mark.parametrize("name", ["message", "warning"])
def test_messages_and_warnings_carry_the_step(name: str) -> None:
    event = report(training(name, message="resuming from x"))
    assert (event.name, event.text) == (name, "step 7: resuming from x")
    assert event.fields == {"step": 7, "message": "resuming from x"}


def test_a_checkpoint_event_carries_step_and_path() -> None:
    event = report(training("checkpoint", message="run/checkpoints/step-7"))
    assert event.text == "step 7: checkpoint run/checkpoints/step-7"
    assert event.fields == {"step": 7, "path": "run/checkpoints/step-7"}
