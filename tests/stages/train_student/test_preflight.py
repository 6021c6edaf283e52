"""What is refused early, and that nothing is written where nothing is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import cache_format
from stages.train_student.config import TrainStudentConfig
from stages.train_student.preflight import check_early
from stages.train_student.trainer import run_directory
from tests.support.hybrid_runs import align_config
from tests.support.train_configs import train_config

_CONFIG = TrainStudentConfig(report_to=())


def check(cache: Path, out: Path, config: TrainStudentConfig = _CONFIG, **options: Any) -> None:
    asked = {"resume": False, "online": False} | options
    check_early(config, cache_format.open(cache), out, **asked)


def files(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()
    }


@pytest.fixture
def run(tiny_cache: Path, tmp_path: Path) -> Path:
    """A run's directory, before its first checkpoint."""
    out = tmp_path / "run"
    run_directory.prepare(
        out, cache_format.open(tiny_cache), _CONFIG, resume=False, recipe_toml="# mine\n"
    )
    return out


def test_a_new_run_passes(tiny_cache: Path, tmp_path: Path) -> None:
    check(tiny_cache, tmp_path / "run")
    check(tiny_cache, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_checkpoint_may_restart(tiny_cache: Path, run: Path) -> None:
    before = files(run)
    check(tiny_cache, run, TrainStudentConfig(report_to=(), seed=7))
    assert files(run) == before


def test_a_run_passes_only_when_resumed_with_its_settings(tiny_cache: Path, run: Path) -> None:
    (run / "checkpoints/step-0000001").mkdir(parents=True)
    before = files(run)
    check(tiny_cache, run, resume=True)
    assert files(run) == before
    with pytest.raises(ValueError, match="Resume it, or choose"):
        check(tiny_cache, run)
    with pytest.raises(ValueError, match="seed was 0 and is 7"):
        check(tiny_cache, run, TrainStudentConfig(report_to=(), seed=7), resume=True)
    with pytest.raises(ValueError, match="teacher_in_the_loop"):
        check(tiny_cache, run, resume=True, online=True)


def test_a_cache_that_has_moved_is_recorded_by_the_run_alone(
    tiny_cache: Path, run: Path, tmp_path: Path
) -> None:
    (run / "checkpoints/step-0000001").mkdir(parents=True)
    shutil.copytree(tiny_cache, tmp_path / "moved")
    before = files(run)
    check(tmp_path / "moved", run, resume=True)
    assert files(run) == before
    run_directory.prepare(
        run, cache_format.open(tmp_path / "moved"), _CONFIG, resume=True, recipe_toml=""
    )
    assert str(tmp_path / "moved") in files(run)["run.json"]


def test_on_resume_only_speed_settings_of_the_student_may_change(
    tiny_cache: Path, run: Path
) -> None:
    (run / "checkpoints/step-0000001").mkdir(parents=True)
    check(tiny_cache, run, train_config(report_to=(), slstm_backend="torch"), resume=True)
    with pytest.raises(ValueError, match=r"student\.dropout was 0\.0 and is 0\.5\. Restore"):
        check(tiny_cache, run, train_config(report_to=(), dropout=0.5), resume=True)


def test_resuming_a_student_without_checkpoints_is_refused(tiny_cache: Path, run: Path) -> None:
    (run / "model").mkdir()
    with pytest.raises(ValueError, match="finished student without checkpoints"):
        check(tiny_cache, run, resume=True)


def test_a_directory_with_other_files_is_refused(tiny_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="is not empty, and not a run"):
        check(tiny_cache, tmp_path)


def test_temperatures_that_the_cache_does_not_hold_are_refused(
    tiny_cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="the cache holds temperatures from 1 to 2"):
        check(tiny_cache, tmp_path, TrainStudentConfig(report_to=(), temperature_start=4.0))


def test_a_student_that_holds_its_teacher_needs_its_weights(
    tiny_cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="holds no weights of its teacher"):
        check(tiny_cache, tmp_path / "out", align_config())
    check(tiny_cache, tmp_path / "out", align_config(), teacher=tmp_path)  # not looked into yet


def test_an_alignment_has_no_teacher_in_the_loop(tiny_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^train_student\.objective: an alignment takes"):
        check(tiny_cache, tmp_path / "out", align_config(), teacher=tmp_path, online=True)


def test_a_student_that_does_not_hold_its_teacher_takes_none(
    tiny_cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="takes no more of its teacher than the cache holds"):
        check(tiny_cache, tmp_path / "out", teacher=tmp_path)
