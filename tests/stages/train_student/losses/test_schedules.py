"""Annealing against the paper's check values, and the learning rate."""

import pytest

from stages.train_student.config import TrainStudentConfig
from stages.train_student.losses.schedules import annealed, learning_rate, learning_rates
from tests.support.hybrid_runs import align_config


@pytest.mark.parametrize(
    ("k", "alpha", "temperature"),
    [(0, 0.800, 2.00), (1, 0.677, 1.59), (10, 0.588, 1.29), (100, 0.553, 1.18), (312, 0.545, 1.15)],
)
def test_annealing_gives_the_papers_values(k: int, alpha: float, temperature: float) -> None:
    assert annealed(0.8, 0.5, k) == pytest.approx(alpha, abs=1e-3)
    assert annealed(2.0, 1.0, k) == pytest.approx(temperature, abs=5e-3)


def test_learning_rate_warms_up_linearly_and_ends_at_zero() -> None:
    config = TrainStudentConfig(learning_rate=1e-3, warmup_ratio=0.1)
    rates = [learning_rate(config, step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == rates[9] == rates[10] == pytest.approx(1e-3)
    assert rates[55] == pytest.approx(5e-4)
    assert rates[100] == pytest.approx(0.0)


def test_a_cosine_may_end_above_zero() -> None:
    config = TrainStudentConfig(learning_rate=1e-2, min_learning_rate=1e-5, warmup_ratio=0.1)
    rates = [learning_rate(config, step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(1e-3)
    assert rates[10] == 1e-2
    assert rates[55] == pytest.approx((1e-2 + 1e-5) / 2)
    assert rates[100] == pytest.approx(1e-5)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_a_constant_rate_stays_after_the_warm_up() -> None:
    config = TrainStudentConfig(
        learning_rate=1e-3, learning_rate_schedule="constant", warmup_ratio=0.1
    )
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[:3] == pytest.approx([1e-4, 2e-4, 3e-4])
    assert set(rates[9:]) == {1e-3}


def test_mixers_follow_the_schedule_from_their_own_peak() -> None:
    settings = {"learning_rate": 1e-3, "min_learning_rate": 1e-4, "warmup_ratio": 0.1}
    one = [learning_rates(align_config(**settings), step, 100) for step in range(101)]
    assert all(rates.base == rates.mixer for rates in one)
    settings["mixer_learning_rate"] = 1e-2
    two = [learning_rates(align_config(**settings), step, 100) for step in range(101)]
    assert [rates.base for rates in two] == [rates.base for rates in one]
    assert two[9].mixer == pytest.approx(1e-2)
    assert two[55].mixer == pytest.approx((1e-2 + 1e-4) / 2)
    assert two[100].mixer == pytest.approx(1e-4)
