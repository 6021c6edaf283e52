"""Coefficients of the scored positions of a row to the cell of a column, and back.

Columns are ``hidden`` and ``tail_moment``; see ``coding/coefficients`` for the bytes. Errors name
the field of the row on the way in, and the column on the way out.

Shapes: T positions, P of them scored, J components.
"""

import numpy as np
from numpy.typing import NDArray

from cache_format.codec.columns import named
from cache_format.codec.plain_columns import PlainValues
from cache_format.codec.row import require_shape
from cache_format.coding.coefficients import CoefficientCode, Coefficients


def encode(
    name: str, coefficients: Coefficients, scored: NDArray[np.bool_], code: CoefficientCode
) -> bytes:
    """The cell of [T, J]; raises ValueError that names the field, ``name``."""
    require_shape(name, coefficients, (len(scored), len(code.limits)))
    if coefficients.dtype != np.int16:
        raise ValueError(f"{name}: expected int16, found {coefficients.dtype}")
    return named(name, lambda: code.encode(coefficients[scored]))


def decode(
    column: str, cell: bytes | memoryview, scored: NDArray[np.bool_], code: CoefficientCode
) -> Coefficients:
    """[T, J], 0 where not scored; raises ValueError that names ``column``."""
    coefficients = np.zeros((len(scored), len(code.limits)), np.int16)
    num_scored = int(scored.sum())
    coefficients[scored] = named(column, lambda: code.decode(cell, num_scored))
    return coefficients


def plain_values(coefficients: Coefficients, scored: NDArray[np.bool_]) -> PlainValues:
    """The same as lists of numbers."""
    lengths = np.where(scored, coefficients.shape[1], 0)
    return PlainValues(coefficients[scored].reshape(-1), lengths)
