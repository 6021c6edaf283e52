"""Fit the code of coefficients to coefficients like those that it will code.

In: coefficients of N positions. Out: a ``CoefficientCode``. Classes are found by turns, as k-means
does: frequencies from the positions of each class, then each position to the class in which it
takes the fewest bits (hard expectation maximization). Classes begin as equally many positions each,
in order of Σ|v|.

Shapes: N positions, J components, S symbols of a position, K classes.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cache_format.coding import rans
from cache_format.coding.coefficients import (
    MAX_LIMIT,
    CoefficientCode,
    Group,
    groups_of,
    split,
    symbols_of,
)

_MOST_AT_LIMIT = 0.01
_SMOOTHING = 0.1  # of a count, for values that have not occurred
_ROUNDS = 8
_MOST_RAW_BITS = 16
"""Of a position: what a lane of rANS carries."""
_LEAST_MEAN = 2.0
"""Of the |v| of a component: its lowest bit then carries all but a few hundredths of a bit."""
_LEAST_POSITIONS = 128
"""Of a class, on average, or there are fewer classes."""
_NUM_SHARED = 8.0
"""Positions of which a class has the frequencies of all on top of its own."""


def fit_code(coefficients: NDArray[np.integer], max_classes: int = 1) -> CoefficientCode:
    """The code for coefficients like these, [N, J], the components in the order of their spread.

    A limit is passed by one coefficient in a hundred at most. The components of a symbol are taken
    as independent. There are ``max_classes``, fewer where positions are, and of these none that no
    position is in.
    """
    num_raw_bits = _num_raw_bits(coefficients)
    values, _ = split(coefficients.astype(np.int64).T, num_raw_bits)
    limits = _limits(values)
    groups = tuple(groups_of(limits))
    symbols = symbols_of(values, groups)
    num_positions = len(coefficients)
    num_classes = max(1, min(max_classes, num_positions // _LEAST_POSITIONS))
    order_N = np.argsort(np.abs(values).sum(0), kind="stable")
    classes_N = np.empty(num_positions, np.int64)
    classes_N[order_N] = np.arange(num_positions) * num_classes // num_positions
    code = _code_of(values, classes_N, limits, groups)
    for _ in range(_ROUNDS if num_classes > 1 else 0):
        _, classes_N = np.unique(code.classes_of(symbols), return_inverse=True)
        code = _code_of(values, classes_N, limits, groups)
    return replace(code, num_raw_bits=num_raw_bits)


def _num_raw_bits(coefficients: NDArray[np.integer]) -> int:
    """Of the first components, as long as they are wide."""
    is_wide = np.abs(coefficients[:, :_MOST_RAW_BITS]).mean(0) >= _LEAST_MEAN
    return int(np.logical_and.accumulate(is_wide).sum())


def _limits(values: NDArray[np.integer]) -> NDArray[np.uint8]:
    """The smallest m that no more than so many of |v| reach, never rising, [J]."""
    sizes = np.sort(np.abs(values), 1)
    num_positions = values.shape[1]
    most_at_limit = int(num_positions * _MOST_AT_LIMIT)
    reached = sizes[:, num_positions - 1 - most_at_limit] + 1
    limits = np.clip(reached, 1, MAX_LIMIT)
    return np.maximum.accumulate(limits[::-1])[::-1].astype(np.uint8)


def _code_of(
    values: NDArray[np.integer],
    classes_N: NDArray[np.int64],
    limits: NDArray[np.uint8],
    groups: tuple[Group, ...],
) -> CoefficientCode:
    """With frequencies of what is in each of the classes 0 … K − 1, each of which has positions."""
    num_members = np.bincount(classes_N)
    num_classes = len(num_members)
    shares = np.zeros((1, rans.NUM_SYMBOLS))
    shares[0, :num_classes] = num_members
    weights = np.zeros((num_classes, len(groups), rans.NUM_SYMBOLS))
    for index, group in enumerate(groups):
        joint = np.ones((num_classes, 1))
        for component in range(group.first, group.last):
            of_values = _shares_of(values[component], classes_N, num_classes, group.limit)
            joint = (joint[:, :, None] * of_values[:, None]).reshape(num_classes, -1)
        weights[:, index, : group.num_symbols] = joint
    frequencies = rans.quantize_frequencies(weights.reshape(-1, rans.NUM_SYMBOLS))
    return CoefficientCode(
        limits, rans.quantize_frequencies(shares)[0], frequencies.reshape(weights.shape)
    )


def _shares_of(
    values_N: NDArray[np.integer], classes_N: NDArray[np.int64], num_classes: int, limit: int
) -> NDArray[np.float64]:
    """Of the values −m … m of one component, in each class, [K, 2m + 1]."""
    num_values = 2 * limit + 1
    clipped = np.clip(values_N, -limit, limit) + limit
    counts = np.bincount(classes_N * num_values + clipped, minlength=num_classes * num_values)
    smoothed = counts.reshape(num_classes, num_values) + _SMOOTHING
    if num_classes > 1:
        smoothed += _NUM_SHARED * smoothed.sum(0) / smoothed.sum()
    shares: NDArray[np.float64] = smoothed / smoothed.sum(1, keepdims=True)
    return shares
