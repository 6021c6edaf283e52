"""Curves as characters: one line of blocks, or a few lines of braille dots.

In: values in order. Out: text of a given width; of values that are all equal, a line in the middle.
"""

import statistics
from collections.abc import Sequence
from itertools import pairwise

_BLOCKS, _ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=+*%#"
_BRAILLE = 0x2800
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""The bits of a braille character by column and row, from the top."""


def sparkline(values: Sequence[float], width: int, *, is_ascii: bool = False) -> str:
    """The course of ``values``, of which each character is a mean if there are more than fit."""
    blocks = _ASCII_BLOCKS if is_ascii else _BLOCKS
    return "".join(blocks[level] for level in _levels(_means(values, width), len(blocks)))


def curve(values: Sequence[float], width: int, height: int, *, is_ascii: bool = False) -> list[str]:
    """``height`` lines of at most ``width`` characters; without braille a point is an asterisk."""
    columns, rows = (1, 1) if is_ascii else (2, 4)
    levels = _levels(_means(values, width * columns), height * rows)
    num_characters = -(-len(levels) // columns)
    cells = [[0] * num_characters for _ in range(height)]
    for x, level in enumerate(levels):
        y = height * rows - 1 - level
        cells[y // rows][x // columns] |= _DOTS[x % columns][y % rows]
    shown = (lambda bits: "*" if bits else " ") if is_ascii else (lambda bits: chr(_BRAILLE + bits))
    return ["".join(map(shown, line)) for line in cells]


def _means(values: Sequence[float], num_points: int) -> list[float]:
    """``values``, or as many means of neighbours as there are points."""
    if len(values) <= num_points:
        return list(values)
    bounds = [round(point * len(values) / num_points) for point in range(num_points + 1)]
    return [statistics.fmean(values[begin:end]) for begin, end in pairwise(bounds)]


def _levels(values: Sequence[float], num_levels: int) -> list[int]:
    """Each value's level between the least and the largest, from 0."""
    if not values:
        return []
    least, most = min(values), max(values)
    if most <= least:
        return [num_levels // 2] * len(values)
    return [round((value - least) / (most - least) * (num_levels - 1)) for value in values]
