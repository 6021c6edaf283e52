"""A sweep before it runs: how long, how large, on which GPUs."""

from pathlib import Path

import pytest

from pipeline.ablation.planning.checks import CheckedRun
from pipeline.ablation.planning.overview import Overview, duration
from pipeline.ablation.planning.run_size import Measured, RunSize
from pipeline.ablation.running.run_sweep import device_problems, disk_problems
from tests.support.sweeps import planned

_SIZE = RunSize(num_steps=10, tokens_per_step=100, validation_tokens=0)


def overview(directory: Path, text: str, *, num_slots: int, **measured: Measured) -> Overview:
    """Of a sweep whose first run has finished."""
    plan, _ = planned(directory, text)
    runs = [
        CheckedRun(run=run, state="new" if number else "finished", size=_SIZE)
        for number, run in enumerate(plan.runs)
    ]
    return Overview(plan=plan, out=directory, runs=runs, measured=measured, num_slots=num_slots)


_THREE = """
[variant.a]
[variant.b]
train_student.max_steps = 5
[variant.c]
train_student.max_steps = 6
"""


def test_time_is_that_of_the_runs_that_are_left(tmp_path: Path) -> None:
    fast, slow = Measured(tokens_per_second=100.0), Measured(tokens_per_second=10.0)
    found = overview(tmp_path, _THREE, num_slots=2, a=fast, b=fast, c=slow)
    assert found.seconds_left == pytest.approx(100.0)
    assert found.sentence() == (
        "3 runs, 1 finished: 2.00k tokens to train on, 2 runs at a time; about 1.7 minutes."
    )
    # c is taken to be as fast as the mean of the others
    assert overview(tmp_path, _THREE, num_slots=1, b=fast).seconds_left == pytest.approx(20.0)
    assert overview(tmp_path, _THREE, num_slots=1).seconds_left is None


def test_only_what_is_left_needs_room(tmp_path: Path) -> None:
    large = Measured(tokens_per_second=1.0, model_bytes=10**9, checkpoint_bytes=10**15)
    assert list(disk_problems(overview(tmp_path, _THREE, num_slots=1, a=large))) == []
    (problem,) = disk_problems(overview(tmp_path / "new", _THREE, num_slots=1, b=large))
    assert problem.startswith(f"{tmp_path}")
    assert "the runs need up to 3.00PB" in problem


def test_a_gpu_that_a_recipe_names_is_refused_where_the_sweep_gives_them(tmp_path: Path) -> None:
    text = f'[set]\ntrain_student.device = "cuda:1"\n{_THREE}'
    found = overview(tmp_path, text, num_slots=2)
    assert "'cuda:1', but with --jobs" in next(device_problems(found))
    assert list(device_problems(overview(tmp_path, _THREE, num_slots=2))) == []


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (3.2, "3 seconds"),
        (89.0, "89 seconds"),
        (90.0, "1.5 minutes"),
        (7200.0, "2.0 hours"),
        (86_400.0 * 3, "3.0 days"),
    ],
)
def test_durations(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected
