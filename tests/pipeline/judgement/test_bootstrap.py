"""Bands: what they must contain, and that paired draws are paired."""

import numpy as np
import pytest

from pipeline.judgement import bootstrap
from pipeline.judgement.bootstrap import (
    BootstrapOptions,
    PairedItems,
    band,
    resample_benchmarks,
    resample_items,
)

_GRID = np.array([0.0, 0.1, 1.0])


def test_one_benchmark_has_a_band_without_width() -> None:
    options = BootstrapOptions(num_resamples=50)
    found = band(resample_benchmarks(np.array([0.25]), options), _GRID, 0.95)
    assert found.alpha_star == (0.25, 0.25)
    assert found.lossless_share == 0.0
    assert found.rates[0].tolist() == found.rates[1].tolist() == [0.0, 0.0, 1.0]


def test_the_band_over_benchmarks_is_that_of_all_possible_draws() -> None:
    """Two benchmarks: both, either twice. α* is 0 unless the lost one is drawn twice."""
    options = BootstrapOptions(num_resamples=4000)
    found = band(resample_benchmarks(np.array([0.0, 0.4]), options), _GRID, 0.9)
    assert found.lossless_share == pytest.approx(0.75, abs=0.03)
    assert found.alpha_star == (0.0, 0.4)
    assert found.rates[0][0] == 0.0
    assert found.rates[1][0] == 1.0


def test_equal_answers_tie_in_every_resample() -> None:
    """The draws of student and teacher are the same: unpaired ones would differ by chance."""
    answers = np.random.default_rng(1).integers(0, 2, 37).astype(float)
    items = PairedItems(student=answers, teacher=answers)
    score = np.array([answers.mean()])
    options = BootstrapOptions(num_resamples=200)
    assert not resample_items(score, score, [items], options).any()


def test_the_spread_over_items_is_the_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the student's mean, where the teacher is right everywhere: 1 − mean is the tolerance."""
    monkeypatch.setattr(bootstrap, "_MOST_DRAWS", 3000)  # several chunks
    answers = np.tile([1.0, 1.0, 1.0, 0.0], 50)
    items = PairedItems(student=answers, teacher=np.ones(200))
    options = BootstrapOptions(num_resamples=3001)
    found = resample_items(np.array([0.75, 0.5]), np.ones(2), [items, None], options)
    assert found.shape == (3001, 2)
    assert found[:, 0].mean() == pytest.approx(0.25, abs=0.003)
    assert found[:, 0].std() == pytest.approx((0.75 * 0.25 / 200) ** 0.5, rel=0.05)
    assert (found[:, 1] == 0.5).all()


def test_the_seed_decides() -> None:
    needed = np.array([0.0, 0.1, 0.2])

    def drawn(seed: int) -> list[list[float]]:
        options = BootstrapOptions(num_resamples=20, seed=seed)
        rows: list[list[float]] = resample_benchmarks(needed, options).tolist()
        return rows

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_resamples": 0}, "num_resamples: expected at least 1, found 0"),
        ({"level": 0.0}, "level: expected a share"),
        ({"level": 1.0}, "level: expected a share"),
    ],
)
def test_options_are_checked(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BootstrapOptions(**settings)  # type: ignore[arg-type]
