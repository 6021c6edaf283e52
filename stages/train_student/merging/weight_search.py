"""The weights of a merge, searched: coordinate search on the simplex, without gradients.

In: a score of weights, lower being better, and a budget of evaluations. Out: every trial. First
come the start, each student alone and the mean of all, so that what is found is at least as good as
the best student; then, with a step that is halved where nothing improves, one student after another
gets a larger or a smaller share. It is deterministic, and no weights are scored twice.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

Weights = tuple[float, ...]

_FIRST_STEP = 0.25
_LAST_STEP = 1 / 64
_DIGITS = 9  # weights that differ by less are the same


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Weights, which are not negative and add up to 1, and their score."""

    weights: Weights
    score: float
    """Infinite where the merged student computes no number."""


def least_evaluations(num_students: int) -> int:
    """The trials before the search proper: without them, it proves nothing."""
    return num_students + 2


def search_weights(
    score: Callable[[Weights], float],
    start: Weights,
    num_evaluations: int,
    report: Callable[[Trial], None] = lambda _: None,
) -> list[Trial]:
    """All trials, in their order; ``report`` is told each.

    ``start`` has at least two weights. Raises ValueError where the budget is below
    ``least_evaluations``.
    """
    least = least_evaluations(len(start))
    if num_evaluations < least:
        raise ValueError(
            f"{num_evaluations} evaluations are too few: {len(start)} students need at least "
            f"{least}, for each alone, their mean and the weights to begin with."
        )
    search = _Search(score, num_evaluations, report)
    for weights in _corners(start):
        search.evaluate(weights)
    step = _FIRST_STEP
    while step >= _LAST_STEP and not search.is_spent:
        if not search.improve(step):
            step /= 2
    return search.trials


def best_trial(trials: Sequence[Trial]) -> Trial:
    """The one of the lowest score; the first of several."""
    return min(trials, key=lambda trial: trial.score)


class _Search:
    """The trials so far, and how many there may be."""

    def __init__(
        self,
        score: Callable[[Weights], float],
        num_evaluations: int,
        report: Callable[[Trial], None],
    ) -> None:
        self.trials: list[Trial] = []
        self._score, self._left, self._report = score, num_evaluations, report
        self._known: set[Weights] = set()

    @property
    def is_spent(self) -> bool:
        return self._left == 0

    def evaluate(self, weights: Weights) -> Trial | None:
        """Its trial; None where the weights are known or the budget is spent."""
        key = tuple(round(weight, _DIGITS) for weight in weights)
        if key in self._known or self.is_spent:
            return None
        self._known.add(key)
        self._left -= 1
        found = self._score(weights)
        trial = Trial(weights=weights, score=found if math.isfinite(found) else math.inf)
        self.trials.append(trial)
        self._report(trial)
        return trial

    def improve(self, step: float) -> bool:
        """Try each student with a larger and a smaller share; whether anything was better."""
        has_improved = False
        for index in range(len(self.trials[0].weights)):
            for signed in (step, -step):
                best = best_trial(self.trials)
                trial = self.evaluate(moved(best.weights, index, signed))
                has_improved |= trial is not None and trial.score < best.score
        return has_improved


def moved(weights: Weights, index: int, step: float) -> Weights:
    """``weights`` with that of ``index`` changed by ``step``, within 0 to 1; the others share.

    They keep their proportions; where they are all 0, they get equal shares.
    """
    share = min(1.0, max(0.0, weights[index] + step))
    others = sum(weights) - weights[index]
    rest = 1.0 - share
    return tuple(
        share
        if place == index
        else rest * (weight / others if others > 0 else 1 / (len(weights) - 1))
        for place, weight in enumerate(weights)
    )


def _corners(start: Weights) -> Iterator[Weights]:
    size = len(start)
    yield start
    for index in range(size):
        yield tuple(float(place == index) for place in range(size))
    yield (1 / size,) * size
