"""The schedules against the paper's check values and both epoch rules."""

import pytest

from stages.train_student.config import TrainStudentConfig
from stages.train_student.losses.schedules import annealed, learning_rate, loss_weights


@pytest.mark.parametrize(
    ("k", "alpha", "temperature"),
    [(0, 0.800, 2.00), (1, 0.677, 1.59), (10, 0.588, 1.29), (100, 0.553, 1.18), (312, 0.545, 1.15)],
)
def test_annealing_gives_the_papers_values(k: int, alpha: float, temperature: float) -> None:
    assert annealed(0.8, 0.5, k) == pytest.approx(alpha, abs=1e-3)
    assert annealed(2.0, 1.0, k) == pytest.approx(temperature, abs=5e-3)


def test_subtract_lowers_the_start_and_keeps_counting_steps() -> None:
    config = TrainStudentConfig()
    weights = loss_weights(config, step=250, steps_per_epoch=100)
    assert weights.alpha == pytest.approx(annealed(0.7, 0.5, 250))
    assert weights.temperature == pytest.approx(annealed(1.9, 1.0, 250))
    late = loss_weights(config, step=99 * 100, steps_per_epoch=100)
    assert late.alpha == 0.5  # v_0 is never lowered beyond v_f


def test_scale_restart_is_a_saw_tooth() -> None:
    config = TrainStudentConfig(epoch_rule="scale_restart")
    weights = loss_weights(config, step=200, steps_per_epoch=100)
    assert weights.alpha == pytest.approx(0.8 * 0.95**2)
    assert weights.temperature == pytest.approx(2.0 * 0.95**2)
    before = loss_weights(config, step=199, steps_per_epoch=100)
    assert before.alpha < weights.alpha


def test_beta_may_rise() -> None:
    config = TrainStudentConfig(beta_start=0.1, beta_end=0.2)
    betas = [loss_weights(config, step, 1000).beta for step in range(50)]
    assert betas[0] == pytest.approx(0.1)
    assert betas == sorted(betas)
    assert betas[-1] < 0.2


def test_learning_rate_warms_up_linearly_and_ends_at_zero() -> None:
    config = TrainStudentConfig(learning_rate=1e-3, warmup_ratio=0.1)
    rates = [learning_rate(config, step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == rates[9] == rates[10] == pytest.approx(1e-3)
    assert rates[55] == pytest.approx(5e-4)
    assert rates[100] == pytest.approx(0.0)


def test_a_rising_alpha_is_raised_by_delta_and_refused_where_it_would_fall() -> None:
    config = TrainStudentConfig(alpha_start=0.5, alpha_end=0.8)
    weights = loss_weights(config, step=300, steps_per_epoch=100)
    assert weights.alpha == pytest.approx(annealed(0.65, 0.8, 300))
    with pytest.raises(ValueError, match=r"alpha_start: must be at least alpha_end"):
        TrainStudentConfig(alpha_start=0.5, alpha_end=0.8, epoch_rule="scale_restart")


def test_the_labels_never_weigh_less_than_nothing() -> None:
    # Each end alone is fine; in between, α falls and β rises at different speeds.
    with pytest.raises(ValueError, match=r"alpha_end: must be at most 1 − β = 0\.1"):
        TrainStudentConfig(alpha_start=0.1, alpha_end=0.9, beta_start=0.9, beta_end=0.1)
