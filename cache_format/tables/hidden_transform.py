"""The transform of the teacher's last hidden states that caches with ``hidden`` targets share.

One for the whole cache, see ``linear_transform``; its vectors are the states h. Stage one fits it
to the corpus's first unit; the spec holds the hash of its file, ``transform.bin``.

Shapes: D width of a state, J components.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cache_format.metadata.spec import CacheSpec
from cache_format.tables.linear_transform import (
    LinearTransform,
    TransformShape,
    parse_transform,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class HiddenTransform(LinearTransform):
    """How states become coefficients, and coefficients bytes."""

    @cached_property
    def sha256(self) -> str:
        """Hash of ``transform.bin``, in hex; the spec's ``targets.hidden.transform_sha256``."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def states(self, coefficients: NDArray[np.integer]) -> NDArray[np.float32]:
        """The hidden states, [P, D], of P positions with these coefficients, [P, J]."""
        return self.vectors(coefficients)


def transform_num_bytes(spec: CacheSpec) -> int:
    """Size of ``transform.bin``."""
    return _shape(spec).num_bytes


def transform_from_bytes(data: bytes, spec: CacheSpec) -> HiddenTransform:
    """The transform of ``spec``; raises ValueError if there is none in ``data``."""
    return HiddenTransform(**vars(parse_transform(data, _shape(spec))))


def _shape(spec: CacheSpec) -> TransformShape:
    hidden = spec.targets.states
    return TransformShape(
        width=spec.teacher.hidden_size,
        num_components=hidden.num_components,
        num_symbols=hidden.num_symbols,
        num_classes=hidden.num_classes,
        num_raw_bits=hidden.num_raw_bits,
    )
