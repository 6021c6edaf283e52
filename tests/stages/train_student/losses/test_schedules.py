"""Annealing against the paper's check values, and the learning rate."""

import pytest

from stages.train_student.config import TrainStudentConfig
from stages.train_student.losses.schedules import annealed, learning_rate


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
