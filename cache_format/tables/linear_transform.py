"""A linear transform that turns vectors into a few whole numbers, and the code of these.

In: vectors of U numbers. Out: coefficients round(A(x − μ)), A being [J, U], which are read back as
μ + Bᵀ·coefficients, B being [J, U]. A and B have the quantization step in them. The files of the
cache that hold one are ``transform.bin`` (``hidden_transform``) and ``tail_moment.bin``
(``tail_moment``).

Shapes: U width of a vector, J components, S symbols, K classes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_format.coding import rans
from cache_format.coding.coefficients import CoefficientCode

LARGEST = 1e18
"""Of a number in the matrices: products of two are still numbers."""

Matrix = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearTransform:
    """How vectors become coefficients, and coefficients bytes."""

    mean: NDArray[np.float32]
    """μ, [U]"""
    analysis: Matrix
    """A, [J, U]"""
    synthesis: Matrix
    """B, [J, U]"""
    code: CoefficientCode
    """Of the coefficients."""

    def to_bytes(self) -> bytes:
        """μ, A and B as float32, then the limits and all frequencies of the code."""
        matrices = (self.mean, self.analysis, self.synthesis)
        return (
            b"".join(matrix.astype("<f4").tobytes() for matrix in matrices)
            + self.code.limits.tobytes()
            + self.code.shares.astype("<u2").tobytes()
            + self.code.frequencies.astype("<u2").tobytes()
        )

    def vectors(self, coefficients: NDArray[np.integer]) -> NDArray[np.float32]:
        """The vectors, [P, U], of P positions with these coefficients, [P, J]."""
        vectors: NDArray[np.float32] = coefficients.astype(np.float32) @ self.synthesis + self.mean
        return vectors


@dataclass(frozen=True, kw_only=True)
class TransformShape:
    """How large a transform is."""

    width: int
    """U"""
    num_components: int
    """J"""
    num_symbols: int
    """S"""
    num_classes: int
    """K"""
    num_raw_bits: int
    """Of a position."""

    @property
    def num_bytes(self) -> int:
        """Size of what ``LinearTransform.to_bytes`` gives."""
        num_floats = self.width * (1 + 2 * self.num_components)
        num_rows = 1 + self.num_classes * self.num_symbols
        return 4 * num_floats + self.num_components + 2 * rans.NUM_SYMBOLS * num_rows


def require_numbers(floats: NDArray[np.float32]) -> None:
    """Raise ValueError unless all are numbers that products can be made of."""
    if not (np.abs(floats) <= LARGEST).all():  # nor NaN
        raise ValueError(f"transform: expected numbers up to ±{LARGEST:g}, found others")


def parse_transform(data: bytes, shape: TransformShape) -> LinearTransform:
    """The transform of this shape; raises ValueError if there is none in ``data``."""
    if len(data) != shape.num_bytes:
        raise ValueError(f"transform: expected {shape.num_bytes} bytes, found {len(data)}")
    width, num_components = shape.width, shape.num_components
    num_floats = width * (1 + 2 * num_components)
    floats = np.frombuffer(data, "<f4", num_floats).astype(np.float32)
    require_numbers(floats)
    matrices = floats[width:].reshape(2, num_components, width)
    limits = np.frombuffer(data, np.uint8, num_components, 4 * num_floats)
    rest = np.frombuffer(data, "<u2", offset=4 * num_floats + num_components).astype(np.uint16)
    shares, frequencies = rest[: rans.NUM_SYMBOLS], rest[rans.NUM_SYMBOLS :]
    of_classes = (shape.num_classes, shape.num_symbols, rans.NUM_SYMBOLS)
    try:
        code = CoefficientCode(limits, shares, frequencies.reshape(of_classes), shape.num_raw_bits)
    except ValueError as error:
        raise ValueError(f"transform: {error}") from error
    return LinearTransform(
        mean=floats[:width], analysis=matrices[0], synthesis=matrices[1], code=code
    )
