"""Which hidden states a cache holds, and how they are projected."""

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from cache_format.metadata.spec_parts.bounds import SHA256, one_of, require

_SKETCH_KINDS = ("rademacher", "pca", "none")
_SKETCH_DTYPES = ("int8", "float16", "float32")
_LAYER = "[1-9][0-9]{0,8}"
_HIDDEN_STATES = re.compile(
    f"mean_over_layers|last|(layers|each):{_LAYER}(,{_LAYER})*|random_layers:{_LAYER}"
)


@dataclass(frozen=True, kw_only=True)
class SketchSpec:
    """How a position's hidden state is projected."""

    kind: Literal["rademacher", "pca", "none"]
    """Random signs drawn anew for every unit; principal components, the same for all; or no hidden
    states at all."""
    hidden_states: str = "mean_over_layers"
    """Which of the teacher's hidden states are projected, see ``random_projection.chosen_layers``:
    ``mean_over_layers``, ``last``, ``layers:4,12`` (the mean of these), ``each:4,12`` (each of
    these by itself) or ``random_layers:2`` (the mean of two)."""
    dim: int
    """d, numbers per position and projected state; 0 when there is no sketch."""
    dtype: Literal["int8", "float16", "float32"] = "int8"
    """How they are stored; int8 with a scale for each position."""
    projection_sha256: str | None = None
    """Hash of ``projection.bin``, the principal components; only of pca."""

    def __post_init__(self) -> None:
        require(self.kind in _SKETCH_KINDS, "kind", self.kind, one_of(_SKETCH_KINDS))
        if self.kind == "none":
            require(self.dim == 0, "dim", self.dim, "0 when kind is 'none'")
        else:
            require(1 <= self.dim <= 65_535, "dim", self.dim, "from 1 to 65535")
        require(self.dtype in _SKETCH_DTYPES, "dtype", self.dtype, one_of(_SKETCH_DTYPES))
        require(
            _HIDDEN_STATES.fullmatch(self.hidden_states) is not None
            and all(low < high for low, high in pairwise(self.named_layers)),
            "hidden_states",
            self.hidden_states,
            "mean_over_layers, last, layers:4,12 or each:4,12 (rising, from 1), or random_layers:2",
        )
        found = self.projection_sha256
        if self.kind == "pca":
            require(
                found is not None and SHA256.fullmatch(found) is not None,
                "projection_sha256",
                found,
                "64 hex digits where kind is 'pca'",
            )
        else:
            require(found is None, "projection_sha256", found, "left out unless kind is 'pca'")

    @property
    def named_layers(self) -> tuple[int, ...]:
        """The numbers in ``hidden_states``: layers, or of random layers their number."""
        _, _, numbers = self.hidden_states.partition(":")
        return tuple(map(int, numbers.split(","))) if numbers else ()

    @property
    def num_states(self) -> int:
        """L: the projected states of a position."""
        return len(self.named_layers) if self.hidden_states.startswith("each:") else 1
