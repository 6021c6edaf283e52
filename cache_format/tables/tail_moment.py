"""What the tail's moments of a cache are taken in: a basis, a center, and their transform.

One for the whole cache. At a node s = 1/T, with p the mass of the teacher's tail, m the mean of
the head's rows w_j under its distribution within the tail, and H that distribution's entropy in
nats, a position has the d + 1 numbers

    u = p·((B m, H) − c),

B being the basis, orthonormal rows [d, D], and c the center. Those of all n nodes, one node after
another, are the vector that the transform (``linear_transform``) turns into coefficients. The
center keeps a reader's rounded p from being multiplied by what all moments have in common. Stage
one fits all of it to the corpus's first unit; the spec holds the hash of the file,
``tail_moment.bin``.

Shapes: D width, d basis, n nodes, U = n(d + 1), J components.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cache_format.metadata.spec import CacheSpec
from cache_format.tables.linear_transform import (
    LinearTransform,
    Matrix,
    TransformShape,
    parse_transform,
    require_numbers,
)
from cache_format.tables.principal_components import require_orthonormal


@dataclass(frozen=True, kw_only=True, eq=False)
class MomentTransform:
    """How moments become coefficients, and coefficients bytes."""

    basis: Matrix
    """B, [d, D]"""
    center: NDArray[np.float32]
    """c, [d + 1]; the last is that of the entropy, nats"""
    transform: LinearTransform
    """Of u at all nodes, [U]"""

    def to_bytes(self) -> bytes:
        """The bytes of ``tail_moment.bin``."""
        floats = (self.basis.astype("<f4"), self.center.astype("<f4"))
        return b"".join(part.tobytes() for part in floats) + self.transform.to_bytes()

    @cached_property
    def sha256(self) -> str:
        """Hash of these bytes, in hex; the spec's ``targets.moment.transform_sha256``."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def moments(self, coefficients: NDArray[np.integer]) -> NDArray[np.float32]:
        """u, [P, n, d + 1], of P positions with these coefficients, [P, J]."""
        vectors = self.transform.vectors(coefficients)
        return vectors.reshape(len(vectors), -1, len(self.center))


def moment_num_bytes(spec: CacheSpec) -> int:
    """Size of ``tail_moment.bin``."""
    return _num_bytes_before(spec) + _shape(spec).num_bytes


def moment_from_bytes(data: bytes, spec: CacheSpec) -> MomentTransform:
    """What ``spec`` names; raises ValueError if ``data`` is something else."""
    if len(data) != moment_num_bytes(spec):
        raise ValueError(f"moment: expected {moment_num_bytes(spec)} bytes, found {len(data)}")
    dim, width = spec.targets.tail_moment.dim, spec.teacher.hidden_size
    before, rest = data[: _num_bytes_before(spec)], data[_num_bytes_before(spec) :]
    floats = np.frombuffer(before, "<f4").astype(np.float32)
    require_numbers(floats)
    basis = floats[: dim * width].reshape(dim, width)
    require_orthonormal(basis.T)
    return MomentTransform(
        basis=basis, center=floats[dim * width :], transform=parse_transform(rest, _shape(spec))
    )


def _num_bytes_before(spec: CacheSpec) -> int:
    """Of basis and center."""
    dim = spec.targets.tail_moment.dim
    return 4 * (dim * spec.teacher.hidden_size + dim + 1)


def _shape(spec: CacheSpec) -> TransformShape:
    moment = spec.targets.tail_moment
    return TransformShape(
        width=len(spec.targets.inverse_temperatures) * (moment.dim + 1),
        num_components=moment.num_components,
        num_symbols=moment.num_symbols,
        num_classes=moment.num_classes,
        num_raw_bits=moment.num_raw_bits,
    )
