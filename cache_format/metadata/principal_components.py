"""The principal components that hidden states are projected on, where the sketch is ``pca``.

One matrix W of orthonormal columns, [D, d], for the whole cache: y = Wᵀh. Stage one takes it from
the corpus's first unit; the spec holds the hash of its file, ``projection.bin``.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from cache_format.errors import CorruptFileError
from cache_format.metadata import layout
from cache_format.metadata.spec import CacheSpec
from cache_format.storage.base import Storage, read_file

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


def require_projection(spec: CacheSpec, projection: Projection | None) -> None:
    """Raise ValueError unless ``projection`` is what ``spec`` names: none, or W with its hash."""
    if (projection is None) != (spec.sketch.kind != "pca"):
        found = "none" if projection is None else "one"
        raise ValueError(f"projection: sketch.kind is {spec.sketch.kind!r}, but there is {found}")
    if projection is None:
        return
    shape = (spec.teacher.hidden_size, spec.sketch.dim)
    if projection.shape != shape:
        raise ValueError(f"projection: expected shape {shape}, found {projection.shape}")
    require_orthonormal(projection)
    if projection_sha256(projection) != spec.sketch.projection_sha256:
        raise ValueError("projection: not the matrix that the spec names")


def read_projection(storage: Storage, spec: CacheSpec) -> Projection | None:
    """W of the cache in ``storage``, None if its sketch needs none.

    Raises MissingFileError or CorruptFileError.
    """
    expected = spec.sketch.projection_sha256
    if expected is None:
        return None
    name, step = layout.PROJECTION, layout.PROJECTION_STEP
    data, path = read_file(storage, name, step), storage.locate(name)
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise CorruptFileError(
            f"{path}: damaged: expected SHA-256 {expected}, found {found}.", step
        )
    try:
        return projection_from_bytes(data, spec)
    except ValueError as error:
        raise CorruptFileError(f"{path}: {error}.", step) from error
