"""The transform of the teacher's last hidden states that caches with ``hidden`` targets share.

One for the whole cache: a mean, two matrices and the code of the coefficients. A state h has the
coefficients round(A(h − μ)), A being [J, D], and is read back as μ + Bᵀ·coefficients, B being
[J, D]. Stage one fits it to the corpus's first unit; the spec holds the hash of its file,
``transform.bin``. A and B have the step in them: a coefficient is a whole number.

Shapes: D width of a state, J components, S symbols.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cache_format.coding import rans
from cache_format.coding.coefficients import CoefficientCode
from cache_format.metadata.spec import CacheSpec

_LARGEST = 1e18  # of a number in the matrices: products of two are still numbers

Matrix = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class HiddenTransform:
    """How states become coefficients, and coefficients bytes."""

    mean: NDArray[np.float32]
    """μ, [D]"""
    analysis: Matrix
    """A, [J, D]"""
    synthesis: Matrix
    """B, [J, D]"""
    code: CoefficientCode
    """Of the coefficients."""

    def to_bytes(self) -> bytes:
        """The bytes of ``transform.bin``."""
        matrices = (self.mean, self.analysis, self.synthesis)
        return (
            b"".join(matrix.astype("<f4").tobytes() for matrix in matrices)
            + self.code.limits.tobytes()
            + self.code.frequencies.astype("<u2").tobytes()
        )

    @cached_property
    def sha256(self) -> str:
        """Hash of these bytes, in hex; the spec's ``targets.hidden.transform_sha256``."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def states(self, coefficients: NDArray[np.integer]) -> NDArray[np.float32]:
        """The hidden states, [P, D], of P positions with these coefficients, [P, J]."""
        states: NDArray[np.float32] = coefficients.astype(np.float32) @ self.synthesis + self.mean
        return states


def transform_num_bytes(spec: CacheSpec) -> int:
    """Size of ``transform.bin``."""
    hidden, width = spec.targets.states, spec.teacher.hidden_size
    num_floats = width + 2 * width * hidden.num_components
    return 4 * num_floats + hidden.num_components + 2 * rans.NUM_SYMBOLS * hidden.num_symbols


def transform_from_bytes(data: bytes, spec: CacheSpec) -> HiddenTransform:
    """The transform of ``spec``; raises ValueError if there is none in ``data``."""
    if len(data) != transform_num_bytes(spec):
        raise ValueError(
            f"transform: expected {transform_num_bytes(spec)} bytes, found {len(data)}"
        )
    width, num_components = spec.teacher.hidden_size, spec.targets.states.num_components
    num_floats = width * (1 + 2 * num_components)
    floats = np.frombuffer(data, "<f4", num_floats).astype(np.float32)
    if not (np.abs(floats) <= _LARGEST).all():  # nor NaN
        raise ValueError(f"transform: expected numbers up to ±{_LARGEST:g}, found others")
    matrices = floats[width:].reshape(2, num_components, width)
    limits = np.frombuffer(data, np.uint8, num_components, 4 * num_floats)
    frequencies = np.frombuffer(data, "<u2", offset=4 * num_floats + num_components)
    try:
        code = CoefficientCode(limits, frequencies.astype(np.uint16).reshape(-1, rans.NUM_SYMBOLS))
    except ValueError as error:
        raise ValueError(f"transform: {error}") from error
    return HiddenTransform(
        mean=floats[:width], analysis=matrices[0], synthesis=matrices[1], code=code
    )
