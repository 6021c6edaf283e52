"""The signs are the same everywhere, differ between units and seeds, and are fair."""

import hashlib

import numpy as np

from cache_format.sketch import sketch_signs


def test_known_bits() -> None:
    key = b"sketch" + bytes([5, 0, 0, 0, 0, 0, 0, 0]) + bytes([1, 1, 0, 0, 0, 0, 0, 0])
    first = hashlib.shake_256(key).digest(2)
    bits = [(byte >> bit) & 1 for byte in first for bit in range(8)]
    expected = [1 if bit else -1 for bit in bits]
    signs = sketch_signs(5, 257, 5, 3)
    assert signs.dtype == np.int8
    assert signs.shape == (5, 3)
    assert signs.reshape(-1).tolist() == expected[:15]


def test_golden_signs() -> None:
    assert sketch_signs(0, 0, 2, 8).tolist() == [
        [-1, 1, -1, 1, 1, -1, -1, 1],
        [1, 1, 1, -1, 1, 1, 1, -1],
    ]


def test_units_and_seeds_differ() -> None:
    base = sketch_signs(0, 0, 64, 64)
    for other in (sketch_signs(0, 1, 64, 64), sketch_signs(1, 0, 64, 64)):
        assert abs(float((base * other).mean())) < 0.1


def test_squared_norm_is_unbiased() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=48)
    dim = 16
    estimates = [
        float(((sketch_signs(3, unit, 48, dim).T @ x) ** 2).sum() / dim) for unit in range(400)
    ]
    spread = float(np.std(estimates)) / 20
    assert abs(float(np.mean(estimates)) - float(x @ x)) < 4 * spread
