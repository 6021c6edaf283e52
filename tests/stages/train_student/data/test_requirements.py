"""A recipe that asks for what the cache does not hold is refused, with what to type instead."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cache_format.errors import AdvisedError
from cache_format.metadata.spec_parts.sketch import SketchSpec
from cache_format.reader import Cache
from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.batch import read_batch
from stages.train_student.data.requirements import require_targets
from stages.train_student.data.targets import top_k
from stages.train_student.data.targets.kind import HeadOnDevice
from stages.train_student.data.targets.moment_tables import require_teachers_head
from stages.train_student.data.targets.sparse_targets import SparseTargets
from stages.train_student.data.teacher_files import teacher_head
from stages.train_student.losses.terms import cache_needs
from stages.train_student.run import train_student
from stages.train_student.students.registry import student_settings
from tests.support.sample_cache import sample_spec
from tests.support.student_caches import TARGETS, write_cache


def require(config: TrainStudentConfig, cache: Cache, *, online: bool = False) -> None:
    """As a run does before anything else."""
    require_targets(config, cache, cache_needs(config), online=online)


@pytest.mark.parametrize("kind", ["top_k", "top_k+sampled"])
@pytest.mark.parametrize(
    ("key", "asked", "is_held"),
    [
        ("temperature_start", 2.0, True),
        ("temperature_start", 2.01, False),
        ("temperature_end", 2.0, True),
        ("temperature_end", 2.01, False),
    ],
)
def test_temperatures_outside_the_nodes_are_refused(
    tmp_path: Path, kind: str, key: str, asked: float, is_held: bool
) -> None:
    cache = write_cache(tmp_path / "cache", TARGETS[kind])
    changes: dict[str, Any] = {key: asked}
    if is_held:
        require(TrainStudentConfig(**changes), cache)
        return
    with pytest.raises(ValueError, match=rf"train_student.{key}: .* from 1 to 2, .* asks for 2.01"):
        require(TrainStudentConfig(**changes), cache)


def test_sampled_targets_allow_only_their_own_temperature(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", TARGETS["sampled hot"])
    for drawn_at in (4 / 3, 1.333333):
        settings = TrainStudentConfig(temperature_start=drawn_at, temperature_end=drawn_at)
        require(settings, cache)
    for start, end, key in ((2.0, 4 / 3, "temperature_start"), (4 / 3, 1.0, "temperature_end")):
        settings = TrainStudentConfig(temperature_start=start, temperature_end=end)
        with pytest.raises(AdvisedError, match=f"{key}: the cache holds samples") as e:
            require(settings, cache)
        assert "Set temperature_start and temperature_end to 1.3333333333333333," in str(e.value)
        assert e.value.next_step.settings == {
            "train_student.temperature_start": 4 / 3,
            "train_student.temperature_end": 4 / 3,
        }


def test_training_on_labels_alone_needs_no_temperature(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", TARGETS["sampled"])
    require(TrainStudentConfig(alpha_start=0.0, alpha_end=0.0), cache)


def test_the_paper_s_schedule_on_samples_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    cache = write_cache(tmp_path / "cache", TARGETS["sampled"])
    out = tmp_path / "run"
    with pytest.raises(ValueError, match=r"Set temperature_start and temperature_end to 1\.0,"):
        train_student(
            TrainStudentConfig(), cache, out, resume=False, recipe_toml="", report=lambda _: None
        )
    assert not out.exists()


def test_without_sketches_a_frobenius_term_is_refused(tmp_path: Path) -> None:
    sketch = sample_spec(with_sketch=False).sketch
    cache = write_cache(tmp_path / "cache", TARGETS["top_k"], sketch)
    require(TrainStudentConfig(beta_start=0.0, beta_end=0.0), cache)
    with pytest.raises(ValueError, match=r"beta_start: the cache holds no hidden states"):
        require(TrainStudentConfig(), cache)


def test_a_frobenius_term_is_refused_on_several_hidden_states(tmp_path: Path) -> None:
    sketch = SketchSpec(kind="rademacher", dim=8, hidden_states="each:1,2")
    cache = write_cache(tmp_path / "cache", TARGETS["top_k"], sketch)
    require(TrainStudentConfig(beta_start=0.0, beta_end=0.0), cache)
    expected = (
        r"beta_start: .* each by itself \(hidden_states is 'each:1,2'\).* and .* to 0, or make"
    )
    with pytest.raises(ValueError, match=expected):
        require(TrainStudentConfig(), cache)
    one = SketchSpec(kind="rademacher", dim=8, hidden_states="each:2")
    require(TrainStudentConfig(), write_cache(tmp_path / "one", TARGETS["top_k"], one))


def test_an_online_teacher_is_refused_with_sampled_softmax(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", TARGETS["top_k"])
    some = TrainStudentConfig(sampled_softmax_size=64)
    require(some, cache)
    require(TrainStudentConfig(), cache, online=True)
    with pytest.raises(ValueError, match=r"train_student.sampled_softmax_size: .* Set it to none"):
        require(some, cache, online=True)


@pytest.mark.parametrize("kind", ["top_k with moment", "top_k+sampled with moment"])
def test_a_trained_head_is_refused_where_the_cache_has_moments(tmp_path: Path, kind: str) -> None:
    cache = write_cache(tmp_path / "cache", TARGETS[kind])
    student = student_settings("distil_xlstm", train_head=True)
    with pytest.raises(ValueError, match=r"train_student.student.train_head: .* Set it to false"):
        require(TrainStudentConfig(student=student), cache)
    with pytest.raises(ValueError, match=r"train_student.student.train_head"):
        train_student(TrainStudentConfig(student=student), cache, tmp_path / "run")
    require(TrainStudentConfig(student=student), cache, online=True)
    require(TrainStudentConfig(student=student, alpha_start=0.0, alpha_end=0.0), cache)
    require(TrainStudentConfig(student=student), write_cache(tmp_path / "b", TARGETS["top_k"]))


def test_a_frozen_head_that_is_not_the_teachers_is_refused(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", TARGETS["top_k with moment"])
    head_VD = teacher_head(cache)
    require_teachers_head(cache, head_VD.bfloat16())
    for other in (None, head_VD.roll(1, 0)):
        with pytest.raises(ValueError, match=r"this student's head is another\. Train another"):
            require_teachers_head(cache, other)
        require_teachers_head(write_cache(tmp_path / "plain", TARGETS["top_k"]), other)


def test_the_moments_of_a_teacher_are_left_out_for_a_student_with_another_head(
    tmp_path: Path,
) -> None:
    """As validation does for a student with a trained head, or one that ``evaluate`` is given."""
    cache = write_cache(tmp_path / "cache", TARGETS["top_k with moment"])
    batch = read_batch(cache, "train", [0], with_sketch=False)
    head_VD = teacher_head(cache)
    for frozen_VD, has_moments in ((head_VD, True), (head_VD + 1, False), (None, False)):
        head = HeadOnDevice(torch.device("cpu"), torch.float32, frozen_VD)
        targets = top_k.make_decoder(cache, head)(batch.targets, batch.scored)
        assert isinstance(targets, SparseTargets)
        assert (targets.moments is not None) == has_moments
