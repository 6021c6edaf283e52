"""Figures over several caches: means over positions, as far as these mean the same."""

import math
from typing import Any

import pytest

from pipeline.students.joint_evaluation import joint_evaluation, joint_text


def evaluation(positions: int, *, note: str = "KL is whole.", **figures: float) -> dict[str, Any]:
    teacher = {"loss": 1.0, "perplexity": math.e, "kl": 0.0, "agreement": 1.0}
    return {
        "positions": positions,
        "kl_temperature": 1.0,
        "notes": [note],
        "student": figures,
        "teacher": teacher,
    }


def test_means_are_weighted_by_positions() -> None:
    one = evaluation(300, loss=2.0, perplexity=math.exp(2), kl=0.5, agreement=0.25, ece=0.1)
    other = evaluation(100, loss=4.0, perplexity=math.exp(4), kl=0.1, agreement=0.75, ece=0.3)
    found = joint_evaluation([one, other])
    assert found["caches"] == [one, other]
    assert found["positions"] == 400
    assert found["student"] == pytest.approx(
        {"loss": 2.5, "kl": 0.4, "agreement": 0.375, "perplexity": math.exp(2.5)}
    )
    assert found["teacher"] == pytest.approx(one["teacher"])
    assert joint_text(found).startswith(
        "All 2 caches, 400 scored positions:\n  teacher: loss 1.0000"
    )


def test_a_kl_of_other_targets_is_not_added_up() -> None:
    one = evaluation(300, loss=2.0, kl=0.5, agreement=0.5)
    other = evaluation(100, note="KL is estimated.", loss=4.0, kl=0.1, agreement=0.5)
    assert joint_evaluation([one, other])["student"].keys() == {"loss", "perplexity"}


def test_figures_that_one_cache_lacks_are_left_out() -> None:
    one, other = evaluation(3, loss=2.0, accuracy=0.5), evaluation(1, loss=4.0)
    assert joint_evaluation([one, other])["student"].keys() == {"loss", "perplexity"}


def test_a_perplexity_beyond_floats_is_left_out() -> None:
    assert joint_evaluation([evaluation(3, loss=1e4)])["student"] == {"loss": 1e4}
