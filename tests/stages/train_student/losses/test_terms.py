"""The terms' weights under both epoch rules, and what they need of a cache."""

from typing import Any

import pytest

from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.requirements import CacheNeeds
from stages.train_student.losses.schedules import annealed
from stages.train_student.losses.terms import LossWeights, cache_needs, loss_weights


def test_subtract_lowers_the_start_and_keeps_counting_steps() -> None:
    config = TrainStudentConfig()
    weights = loss_weights(config, step=250, steps_per_epoch=100)
    assert weights.alpha == pytest.approx(annealed(0.7, 0.5, 250))
    assert weights.temperature == pytest.approx(annealed(1.9, 1.0, 250))
    late = loss_weights(config, step=99 * 100, steps_per_epoch=100)
    assert late.alpha == 0.5  # v_0 is never lowered beyond v_f


def test_the_restart_schedule_is_a_saw_tooth() -> None:
    config = TrainStudentConfig(epoch_rule="scale_restart")
    weights = loss_weights(config, step=200, steps_per_epoch=100)
    assert weights.alpha == pytest.approx(0.8 * 0.95**2)
    assert weights.temperature == pytest.approx(2.0 * 0.95**2)
    before = loss_weights(config, step=199, steps_per_epoch=100)
    assert before.alpha < weights.alpha


def test_beta_may_be_annealed_upwards() -> None:
    config = TrainStudentConfig(beta_start=0.1, beta_end=0.2)
    betas = [loss_weights(config, step, 1000).beta for step in range(50)]
    assert betas[0] == pytest.approx(0.1)
    assert betas == sorted(betas)
    assert betas[-1] < 0.2


def test_a_rising_alpha_is_raised_each_epoch_and_refused_with_scale_restart() -> None:
    config = TrainStudentConfig(alpha_start=0.5, alpha_end=0.8)
    weights = loss_weights(config, step=300, steps_per_epoch=100)
    assert weights.alpha == pytest.approx(annealed(0.65, 0.8, 300))
    with pytest.raises(ValueError, match=r"alpha_start: must be at least alpha_end"):
        TrainStudentConfig(alpha_start=0.5, alpha_end=0.8, epoch_rule="scale_restart")


def test_the_label_weight_is_never_negative() -> None:
    # Each end alone is fine; in between, α falls and β rises at different speeds.
    with pytest.raises(ValueError, match=r"alpha_end: must be at most 1 − β = 0\.1"):
        TrainStudentConfig(alpha_start=0.1, alpha_end=0.9, beta_start=0.9, beta_end=0.1)


@pytest.mark.parametrize("ends", [(0.0, 0.2), (0.2, 0.0)])
def test_a_term_with_weight_at_either_end_needs_its_targets(ends: tuple[float, float]) -> None:
    nothing: dict[str, Any] = {
        "alpha_start": 0.0,
        "alpha_end": 0.0,
        "beta_start": 0.0,
        "beta_end": 0.0,
    }
    labels = CacheNeeds(temperatures={}, hidden_states_for=())
    assert cache_needs(TrainStudentConfig(**nothing)) == labels
    kl = TrainStudentConfig(**{**nothing, "alpha_start": ends[0], "alpha_end": ends[1]})
    temperatures = {"temperature_start": 2.0, "temperature_end": 1.0}
    assert cache_needs(kl) == CacheNeeds(temperatures=temperatures, hidden_states_for=())
    frobenius = TrainStudentConfig(**{**nothing, "beta_start": ends[0], "beta_end": ends[1]})
    settings = ("beta_start", "beta_end")
    assert cache_needs(frobenius) == CacheNeeds(temperatures={}, hidden_states_for=settings)


def test_labels_alone_use_no_teacher() -> None:
    assert not LossWeights(alpha=0.0, beta=0.0, temperature=1.0).uses_teacher
    assert LossWeights(alpha=0.1, beta=0.0, temperature=1.0).uses_teacher
    assert LossWeights(alpha=0.0, beta=0.1, temperature=1.0).uses_teacher
