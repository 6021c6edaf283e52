"""Signs and layers are the same everywhere, differ between units and seeds, and are fair."""

import hashlib
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from cache_format.tables.random_projection import chosen_layers, sketch_signs


def test_projection_signs_are_the_bits_of_shake_256() -> None:
    key = b"sketch" + bytes([5, 0, 0, 0, 0, 0, 0, 0]) + bytes([1, 1, 0, 0, 0, 0, 0, 0])
    first = hashlib.shake_256(key).digest(2)
    bits = [(byte >> bit) & 1 for byte in first for bit in range(8)]
    expected = [1 if bit else -1 for bit in bits]
    signs = sketch_signs(5, 257, 5, 3)
    assert signs.dtype == np.int8
    assert signs.shape == (5, 3)
    assert signs.reshape(-1).tolist() == expected[:15]


def test_projection_signs_equal_the_golden_ones() -> None:
    assert sketch_signs(0, 0, 2, 8).tolist() == [
        [-1, 1, -1, 1, 1, -1, -1, 1],
        [1, 1, 1, -1, 1, 1, 1, -1],
    ]


def test_projection_signs_differ_between_units_and_seeds() -> None:
    base = sketch_signs(0, 0, 64, 64)
    for other in (sketch_signs(0, 1, 64, 64), sketch_signs(1, 0, 64, 64)):
        assert abs(float((base * other).mean())) < 0.1


def test_the_squared_norm_of_a_projection_is_unbiased() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=48)
    dim = 16
    estimates = [
        float(((sketch_signs(3, unit, 48, dim).T @ x) ** 2).sum() / dim) for unit in range(400)
    ]
    spread = float(np.std(estimates)) / 20
    assert abs(float(np.mean(estimates)) - float(x @ x)) < 4 * spread


@pytest.mark.parametrize(
    ("hidden_states", "expected"),
    [
        ("mean_over_layers", (1, 2, 3, 4, 5, 6)),
        ("last", (6,)),
        ("layers:1", (1,)),
        ("layers:2,3,6", (2, 3, 6)),
        ("each:1", (1,)),
        ("each:2,3,6", (2, 3, 6)),
        ("random_layers:6", (1, 2, 3, 4, 5, 6)),
    ],
)
def test_fixed_layer_choices_are_the_same_for_every_unit(
    hidden_states: str, expected: tuple[int, ...]
) -> None:
    for unit in (0, 1, 10**9):
        assert chosen_layers(hidden_states, 6, 3, unit) == expected


def test_random_layers_follow_from_shake_256() -> None:
    key = b"layers" + bytes([5, 0, 0, 0, 0, 0, 0, 0]) + bytes([1, 1, 0, 0, 0, 0, 0, 0])
    stream = hashlib.shake_256(key).digest(24)
    numbers = [int.from_bytes(stream[start : start + 8], "little") for start in (0, 8, 16)]
    assert chosen_layers("random_layers:1", 3, 5, 257) == (1 + numbers.index(min(numbers)),)
    without = {1, 2, 3} - {1 + numbers.index(max(numbers))}
    assert chosen_layers("random_layers:2", 3, 5, 257) == tuple(sorted(without))


def test_random_layers_equal_the_golden_ones() -> None:
    found = [chosen_layers("random_layers:3", 28, 0, unit) for unit in range(3)]
    assert found == [(1, 17, 23), (13, 25, 27), (6, 12, 18)]


def test_every_choice_of_random_layers_is_equally_likely() -> None:
    """χ² over the 10 pairs of 5 layers; 27.9 is its 99.9 % quantile at 9 degrees of freedom."""
    num_units = 5000
    seen = Counter(chosen_layers("random_layers:2", 5, 1, unit) for unit in range(num_units))
    assert set(seen) == set(combinations(range(1, 6), 2))
    expected = num_units / 10
    assert sum((count - expected) ** 2 / expected for count in seen.values()) < 27.9
    other = Counter(chosen_layers("random_layers:2", 5, 2, unit) for unit in range(num_units))
    assert other != seen
