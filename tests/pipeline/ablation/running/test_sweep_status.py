"""What has become of a sweep's runs, as their directories and logs tell."""

import shutil
from pathlib import Path

import pytest

from cache_format.storage.atomic import lock_unless_held
from pipeline.ablation.planning.sweep_copy import log_of, write_copy
from pipeline.ablation.running.sweep_status import is_sweep, sweep_status, sweep_text
from tests.support.run_directories import write_run
from tests.support.sweeps import planned

_TEXT = """
seeds = [0, 1, 2]
[variant.base]
[variant.wide]
train_student.student.num_blocks = 2
"""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    plan, problems = planned(tmp_path / "file", _TEXT)
    assert not problems
    write_copy(plan, tmp_path / "out")
    return tmp_path / "out"


def write_log(out: Path, name: str, text: str) -> None:
    log = log_of(out, name)
    log.parent.mkdir(exist_ok=True)
    log.write_text(f"$ now pipeline train-student\n{text}")


def test_each_run_has_its_outcome(out: Path) -> None:
    write_run(out / "base/seed=0")
    write_log(out, "base/seed=0", "Error: from before\n$ now pipeline train-student\ndone\n")
    write_run(out / "wide/seed=0", steps=3, is_finished=False)
    write_log(out, "wide/seed=0", "step 3\nError: loss is not finite\n")
    write_run(out / "base/seed=1", steps=2, is_finished=False)
    write_log(out, "wide/seed=1", "Error: no space left\n")
    write_run(out / "base/seed=2", steps=1, is_finished=False)
    with lock_unless_held(out / "base/seed=2") as is_ours:
        assert is_ours
        status = sweep_status(out)
    assert status.outcomes == {
        "base/seed=0": "finished",
        "wide/seed=0": "failed",
        "base/seed=1": "interrupted",
        "wide/seed=1": "failed",
        "base/seed=2": "running",
        "wide/seed=2": "not begun",
    }
    assert status.lines() == [
        f"{out}: a sweep of 6 runs: 1 finished, 1 running, 2 failed, 1 interrupted, 1 not begun.",
        "wide/seed=0 failed: loss is not finite",
        "wide/seed=1 failed: no space left",
        "Not begun: wide/seed=2.",
    ]
    assert sweep_status(out).outcomes["base/seed=2"] == "interrupted"


def test_a_sweep_of_which_nothing_has_begun(out: Path, tmp_path: Path) -> None:
    status = sweep_status(out)
    assert not status.has_begun
    assert status.lines() == [f"{out}: a sweep of 6 runs: 6 not begun."]
    assert is_sweep(out)
    assert not is_sweep(tmp_path)
    assert "[variant.wide]" in sweep_text(out)


def test_a_run_that_has_not_recorded_anything_may_be_running(out: Path) -> None:
    (out / "base/seed=0").mkdir(parents=True)
    with lock_unless_held(out / "base/seed=0"):
        assert sweep_status(out).counts == {"running": 1, "not begun": 5}


def test_a_run_that_was_killed_before_it_recorded_anything(out: Path) -> None:
    write_log(out, "base/seed=1", "the teacher is read\n")
    assert sweep_status(out).counts == {"interrupted": 1, "not begun": 5}
    assert sweep_status(out, held=lambda path: path.name == "seed=1").counts == {
        "running": 2,
        "not begun": 4,
    }


def test_a_damaged_copy_is_an_error(out: Path) -> None:
    (out / "base.toml").unlink()
    with pytest.raises(ValueError, match=r"base\.toml"):
        sweep_status(out)
    shutil.rmtree(out)
    with pytest.raises(OSError, match=r"sweep\.toml"):
        sweep_status(out)
