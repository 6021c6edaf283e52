"""The objective as a whole: a step asks the device for nothing, and tells it nothing in between."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import cache_format
from cache_format.reader import Cache
from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.batch import Batch, read_batch
from stages.train_student.data.scored import scored
from stages.train_student.losses.loss_term import LossNormalizer, TermInputs, TermLoss
from stages.train_student.losses.objective import Objective, make_objective
from stages.train_student.losses.teacher_signal import OnlineSignal, TeacherStates
from stages.train_student.losses.terms import LossWeights, WeightedTerm
from stages.train_student.new_student import load_student
from tests.support.batches import ids_of
from tests.support.host_waits import NoDeviceSync
from tests.support.student_caches import TARGETS, TEMPERATURES, write_cache
from tests.support.train_configs import tiny_train_config


def test_the_sync_detector_catches_operations_that_wait_for_the_device() -> None:
    values = torch.arange(3.0)
    is_large = values > 1
    with NoDeviceSync():
        for ask in (
            lambda: values[values > 1],
            lambda: bool(values.sum() > 1),
            lambda: values.nonzero(),
            lambda: values[1].item(),
            lambda: values.masked_select(is_large),
            lambda: values.clone().index_put_((is_large,), values[0]),
            lambda: torch.tensor([1.0, 2.0]),
            lambda: torch.as_tensor([1.0, 2.0]),
            lambda: values.new_tensor([1.0, 2.0]),
            lambda: values * torch.tensor(2.0),
            lambda: values[[0, 1]],
            lambda: values[None, [True, False, True]],
            lambda: values.clone().__setitem__(0, 1.0),
            lambda: values.clone().__setitem__([0, 1], 1.0),
            lambda: values.clone().__setitem__(is_large, 1.0),
            lambda: torch.where(is_large, values, 0.0),
            lambda: values.where(is_large, 0),
        ):
            with pytest.raises(AssertionError):
                ask()


def test_the_sync_detector_allows_operations_that_do_not_wait() -> None:
    values, place = torch.arange(3.0), torch.tensor([0])
    is_large = values > 1
    with NoDeviceSync():
        values[:2] = 2.0
        values[1:] = values[:1] * 2.0 + torch.full((), 3.0)
        assert len(values.index_select(0, place)) == len(values[place]) == 1
        values.masked_fill(is_large, -math.inf)
        torch.where(is_large, values, values[:1])
        torch.zeros(3).scatter_(0, place, 1.0).clamp_min(0.5)


class FakeTeacher:
    """An ``OnlineTeacher`` of given states, which says whether the student was before it."""

    def __init__(self, batch: Batch, head_VD: Tensor) -> None:
        shape = (*batch.input_ids.shape, head_VD.shape[1])
        self.head_VD, self.num_asked = head_VD, 0
        self._states = torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def states(self, input_ids: Tensor, is_document_start: Tensor) -> TeacherStates:
        self.num_asked += 1
        return TeacherStates(self._states, self._states)


def tiny_objective(config: TrainStudentConfig, cache: Cache) -> tuple[Any, Objective]:
    """A student and what it is trained by."""
    model = load_student(config, cache)
    return model, make_objective(model, cache, config, torch.device("cpu"))


def require_no_device_sync(
    model: Any, objective: Objective, batch: Batch, temperature: float
) -> None:
    weights = LossWeights(0.5, 0.1, temperature)
    with NoDeviceSync():
        loss, _ = objective.micro_batch_loss(
            model, batch, weights, LossNormalizer(batch.num_scored, batch.num_rows)
        )
        loss.backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("slstm_at", [(0,), ()])
@pytest.mark.parametrize("train_head", [True, False])
def test_forward_and_backward_never_wait_for_the_device(
    tiny_cache: Path, precision: Any, slstm_at: tuple[int, ...], train_head: bool
) -> None:
    cache = cache_format.open(tiny_cache)
    config = tiny_train_config(slstm_at=slstm_at, precision=precision, train_head=train_head)
    batch = read_batch(cache, "train", range(4), with_sketch=True)
    assert batch.is_document_start[:, 1:].any()
    require_no_device_sync(*tiny_objective(config, cache), batch, 1.3)


@pytest.mark.parametrize("kind", list(TARGETS))
def test_forward_and_backward_never_wait_for_the_device_with_any_targets(
    tmp_path: Path, kind: str
) -> None:
    cache = write_cache(tmp_path / "cache", TARGETS[kind])
    batch = read_batch(cache, "train", range(3), with_sketch=False)
    temperature = TEMPERATURES.get(kind, (1.3,))[0]
    require_no_device_sync(*tiny_objective(tiny_train_config(), cache), batch, temperature)


def test_forward_and_backward_never_wait_for_the_device_with_an_online_teacher(
    tiny_cache: Path,
) -> None:
    cache = cache_format.open(tiny_cache)
    batch = read_batch(cache, "train", range(4), with_sketch=False)
    model, objective = tiny_objective(tiny_train_config(), cache)
    teacher = FakeTeacher(batch, objective.head_of(model))
    require_no_device_sync(model, replace(objective, signal=OnlineSignal(teacher)), batch, 1.3)
    assert teacher.num_asked == 1


def test_the_online_teacher_runs_before_the_student(
    tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for the device, on which nothing of the student may be queued by then."""
    cache = cache_format.open(tiny_cache)
    batch = read_batch(cache, "train", range(2), with_sketch=False)
    model, objective = tiny_objective(tiny_train_config(), cache)
    teacher, forward = FakeTeacher(batch, objective.head_of(model)), model.hidden_states
    num_asked: list[int] = []

    def hidden_states(*arguments: Any) -> Tensor:
        num_asked.append(teacher.num_asked)
        hidden_BTD: Tensor = forward(*arguments)
        return hidden_BTD

    monkeypatch.setattr(model, "hidden_states", hidden_states)
    normalizer = LossNormalizer(batch.num_scored, batch.num_rows)
    replace(objective, signal=OnlineSignal(teacher)).micro_batch_loss(
        model, batch, LossWeights(0.5, 0.0, 1.3), normalizer
    )
    assert num_asked == [1]


def test_a_trained_head_is_the_model_s_own_without_a_copy(tiny_cache: Path) -> None:
    cache = cache_format.open(tiny_cache)
    model, objective = tiny_objective(tiny_train_config(train_head=True), cache)
    assert objective.head_VD is None
    with torch.no_grad():
        model.lm_head.weight.copy_(model.lm_head.weight * 2)  # as another checkpoint's would be
    rows = cache.spec.teacher.vocab_size
    assert torch.equal(objective.head_of(model), model.lm_head.weight[:rows])
    assert objective.head_of(model).requires_grad


def test_a_frozen_head_has_no_padding_rows(tiny_cache: Path) -> None:
    cache = cache_format.open(tiny_cache)
    model, objective = tiny_objective(tiny_train_config(), cache)
    assert objective.head_of(model) is objective.head_VD
    assert len(objective.head_of(model)) == cache.spec.teacher.vocab_size
    assert not objective.head_of(model).requires_grad


def test_a_batch_without_a_scored_position_adds_no_loss(tiny_cache: Path) -> None:
    cache = cache_format.open(tiny_cache)
    batch = read_batch(cache, "train", range(2), with_sketch=True)
    labels, none = torch.full_like(batch.labels, -100), batch.scored[:0]
    model, objective = tiny_objective(tiny_train_config(), cache)
    loss, terms = objective.micro_batch_loss(
        model,
        replace(batch, labels=labels, scored=none),
        LossWeights(0.5, 0.1, 1.3),
        LossNormalizer(50, 4),
    )
    loss.backward()  # type: ignore[no-untyped-call]
    assert terms.tolist() == pytest.approx([0, 0, 0, 0], abs=1e-9)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert not any(gradient.any() for gradient in gradients)


class MeanSquare:
    """A term that a recipe might add."""

    names = ("mean_square",)

    def __call__(self, inputs: TermInputs, weight: float, normalizer: LossNormalizer) -> TermLoss:
        mean = inputs.hidden_BTD.square().mean() * inputs.batch.num_rows / normalizer.num_rows
        return TermLoss(weight * mean, (mean,))


def test_a_further_loss_term_adds_its_loss_gradient_and_value(tiny_cache: Path) -> None:
    cache = cache_format.open(tiny_cache)
    batch = read_batch(cache, "train", range(2), with_sketch=True)
    model, objective = tiny_objective(tiny_train_config(dropout=0.0), cache)
    further = (*objective.further_terms, WeightedTerm(MeanSquare(), lambda w: w.alpha / 2))
    longer = replace(objective, further_terms=further)
    names = ("loss", "cross_entropy", "kl", "frobenius")
    assert objective.value_names == names
    assert longer.value_names == (*names, "mean_square")
    step = (LossWeights(0.5, 0.1, 1.3), LossNormalizer(batch.num_scored, 4))
    loss, values = objective.micro_batch_loss(model, batch, *step)
    more, more_values = longer.micro_batch_loss(model, batch, *step)
    hidden = model.hidden_states(batch.input_ids, batch.is_document_start)
    expected = hidden.square().mean() / 2
    assert more_values[4].item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(more_values[1:4], values[1:])
    assert more_values[0].item() == more.item() == pytest.approx((loss + expected / 4).item())
    trained = [p for p in model.parameters() if p.requires_grad]
    gained = torch.autograd.grad(loss + expected / 4, trained, allow_unused=True)
    found = torch.autograd.grad(more, trained, allow_unused=True)
    torch.testing.assert_close(found, gained)


def test_only_scored_positions_are_selected(tiny_cache: Path) -> None:
    batch = read_batch(cache_format.open(tiny_cache), "train", [0, 3], with_sketch=True)
    is_scored = batch.labels >= 0
    assert torch.equal(scored(batch.labels, batch), batch.labels[is_scored])
    gaps = ids_of(batch).logit_gaps
    assert torch.equal(scored(gaps, batch), gaps[is_scored])
