"""Both signals say what the weights of a step ask for, and no more."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

import cache_format
from cache_format.metadata.spec_parts.sketch import SketchSpec
from stages.train_student.data.batch import read_batch
from stages.train_student.data.scored import scored
from stages.train_student.data.targets.dense_targets import DenseTargets
from stages.train_student.data.targets.ids import sparse_targets
from stages.train_student.data.targets.sparse_targets import SparseTargets
from stages.train_student.losses.loss_term import TeacherTargets
from stages.train_student.losses.states.frobenius import ProjectedStates, WholeStates
from stages.train_student.losses.teacher_signal import CachedSignal, OnlineSignal, TeacherStates
from stages.train_student.losses.terms import LossWeights
from tests.support.batches import ids_of
from tests.support.sample_cache import pca_sketch
from tests.support.student_caches import TARGETS, write_cache

_BOTH = LossWeights(0.5, 0.1, 1.3)
_FROBENIUS = LossWeights(0.0, 0.1, 1.3)
_LABELS = LossWeights(0.0, 0.0, 1.3)


class Teacher:
    """An ``OnlineTeacher`` that counts how often it is asked."""

    def __init__(self, has_mean: bool) -> None:
        self.head_VD, self.num_asked, self._has_mean = torch.zeros(7, 4), 0, has_mean

    def states(self, input_ids: Tensor, is_document_start: Tensor) -> TeacherStates:
        self.num_asked += 1
        last_BTD = torch.arange(input_ids.numel() * 4.0).reshape(*input_ids.shape, 4)
        return TeacherStates(last_BTD, last_BTD / 2 if self._has_mean else None)


@pytest.mark.parametrize("sketch", [SketchSpec(kind="rademacher", dim=8), pca_sketch()])
def test_cached_targets_are_those_of_the_batch(tmp_path: Path, sketch: SketchSpec) -> None:
    cache = write_cache(tmp_path / "cache", TARGETS["top_k"], sketch)
    batch = read_batch(cache, "train", [0, 1], with_sketch=True)
    signal = CachedSignal(cache.spec, partial(sparse_targets, spec=cache.spec.targets))
    targets = signal.targets(batch, _BOTH)
    assert isinstance(targets.distribution, SparseTargets)
    assert torch.equal(targets.distribution.gaps_NK, scored(ids_of(batch).logit_gaps, batch))
    assert isinstance(targets.hidden_states, ProjectedStates)
    assert batch.sketch is not None
    assert torch.equal(targets.hidden_states.sketch_BTd, batch.sketch[:, :, 0])
    assert targets.hidden_states.sketch_BTd.data_ptr() == batch.sketch.data_ptr()  # no copy
    assert targets.hidden_states.projection_BDd is batch.projection
    assert targets.hidden_states.scale == pytest.approx(1.0 if sketch.kind == "pca" else 8**-0.5)
    assert signal.targets(batch, _FROBENIUS).distribution is None
    without = replace(batch, sketch=None, projection=None)
    assert signal.targets(without, _BOTH).hidden_states is None


@pytest.mark.parametrize("has_mean", [True, False])
def test_an_online_teacher_runs_once_per_batch(tiny_cache: Path, has_mean: bool) -> None:
    batch = read_batch(cache_format.open(tiny_cache), "train", [0, 1], with_sketch=True)
    teacher = Teacher(has_mean)
    targets = OnlineSignal(teacher).targets(batch, _BOTH)
    assert teacher.num_asked == 1
    last_BTD = teacher.states(batch.input_ids, batch.is_document_start).last_BTD
    assert isinstance(targets.distribution, DenseTargets)
    assert torch.equal(targets.distribution.hidden_ND, scored(last_BTD, batch))
    assert targets.distribution.head_VD is teacher.head_VD
    if has_mean:
        assert isinstance(targets.hidden_states, WholeStates)
        assert torch.equal(targets.hidden_states.teacher_BTD, last_BTD / 2)
    else:
        assert targets.hidden_states is None


def test_an_online_teacher_computes_no_targets_of_zero_weight(tiny_cache: Path) -> None:
    batch = read_batch(cache_format.open(tiny_cache), "train", [0], with_sketch=True)
    teacher = Teacher(has_mean=True)
    signal = OnlineSignal(teacher)
    assert signal.targets(batch, _FROBENIUS).distribution is None
    assert teacher.num_asked == 1
    targets = signal.targets(batch, _LABELS)
    assert targets == TeacherTargets()
    assert teacher.num_asked == 1


def test_a_term_on_states_alone_asks_for_them(tiny_cache: Path) -> None:
    batch = read_batch(cache_format.open(tiny_cache), "train", [0], with_sketch=True)
    teacher = Teacher(has_mean=True)
    targets = OnlineSignal(teacher).targets(batch, LossWeights(0.0, 0.0, 1.0, state_mse=0.5))
    last_BTD = teacher.states(batch.input_ids, batch.is_document_start).last_BTD
    assert isinstance(targets.distribution, DenseTargets)
    assert torch.equal(targets.distribution.hidden_ND, scored(last_BTD, batch))
