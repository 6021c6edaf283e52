"""The principal components that hidden states are projected on, where the sketch is ``pca``.

One matrix W of orthonormal columns, [D, d], for the whole cache: y = Wᵀh. Stage one takes it from
the corpus's first unit; the spec holds the hash of its file, ``projection.bin``.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from cache_format.metadata.spec import CacheSpec

_TOLERANCE = 1e-3

Projection = NDArray[np.float32]


def projection_bytes(projection: Projection) -> bytes:
    """The bytes of ``projection.bin`` for W, [D, d]."""
    return projection.astype("<f4").tobytes()


def projection_sha256(projection: Projection) -> str:
    """Hash of these bytes, in hex; the spec's ``sketch.projection_sha256``."""
    return hashlib.sha256(projection_bytes(projection)).hexdigest()


def projection_from_bytes(data: bytes, spec: CacheSpec) -> Projection:
    """W of ``spec``, [D, d]; raises ValueError if there is none in ``data``."""
    shape = (spec.teacher.hidden_size, spec.sketch.dim)
    if len(data) != num_bytes(spec):
        raise ValueError(f"projection: expected {num_bytes(spec)} bytes, found {len(data)}")
    projection: Projection = np.frombuffer(data, "<f4").astype(np.float32).reshape(shape)
    require_orthonormal(projection)
    return projection


def num_bytes(spec: CacheSpec) -> int:
    """Size of ``projection.bin``."""
    return 4 * spec.teacher.hidden_size * spec.sketch.dim


def require_orthonormal(projection: Projection) -> None:
    """Raise ValueError unless WᵀW is the identity, up to 1e-3 in every entry."""
    if not np.isfinite(projection).all():
        raise ValueError("projection: expected finite numbers")
    # Numbers so large that their products overflow are as far from it as others.
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.abs(projection.T @ projection - np.eye(projection.shape[1], dtype=np.float32))
    if not (error <= _TOLERANCE).all():
        raise ValueError(
            f"projection: expected orthonormal columns, found products that are off by "
            f"{error.max():.3g}"
        )
