"""How far runs are, by the ends of their metrics."""

from pathlib import Path

import pytest

from pipeline.ablation.planning.run_size import RunSize
from pipeline.ablation.running.processes import Job
from pipeline.ablation.running.progress import SweepProgress, step_reached
from pipeline.reporting.events import Event


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("", 0),
        ('{"step": 3}\n{"step": 4}\n', 4),
        ('{"step": 3}\n{"step": 4, "tr', 3),
        ("x" * 20_000 + '\n{"step": 12}\n', 12),
        ('{"step": "a"}\n', 0),
        ("[]\n", 0),
    ],
)
def test_the_step_that_a_run_has_reached(tmp_path: Path, text: str, step: int) -> None:
    (tmp_path / "metrics.jsonl").write_text(text)
    assert step_reached(tmp_path) == step


def test_progress_counts_the_tokens_of_all_runs(tmp_path: Path) -> None:
    events: list[Event] = []
    size = RunSize(num_steps=10, tokens_per_step=64, validation_tokens=0)
    progress = SweepProgress(events.append, dict.fromkeys("abc", size), ["a"])
    (tmp_path / "metrics.jsonl").write_text('{"step": 4}\n')
    progress.looked([Job(name="b", arguments=(), out=tmp_path, log=tmp_path / "log")])
    (event,) = events
    assert event.text == "1 of 3 runs · b 4/10"
    assert event.fields["tokens_done"] == 14 * 64
    assert event.fields["tokens_total"] == 30 * 64
