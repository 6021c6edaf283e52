"""What a cache keeps of the teacher's distribution, and what each kind of target asks of that.

A kind is added here with the fields that it needs, and with its rule in ``_RULES``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from cache_format.metadata.spec_parts.bounds import SHA256, one_of, require

Kind = Literal["top_k", "sampled", "top_k+sampled"]

_MAX_LEVELS = 255  # a level is a byte
_MAX_DRAWS = 255


@dataclass(frozen=True, kw_only=True)
class TargetSpec:
    """What is kept of the teacher's distribution at a position."""

    kind: Kind = "top_k"
    """The largest logits; ids drawn from the teacher with their counts (RS-KD, arXiv 2503.16870);
    or the largest logits and ids drawn from the rest."""
    top_k: int
    """The most ids kept of a position."""
    keep_mass: float
    """Ids are kept until they hold this share of the mass; 1 keeps top_k of them."""
    inverse_temperatures: tuple[float, ...]
    """Nodes s = 1/T at which the log-mass of the tail is stored: rising, the last is 1. Of samples
    the one s that they are drawn at, at most 1."""
    num_levels: int = 128
    """Steps of the fourth root of a probability between 0 and 1; of samples, the draws at each
    position."""
    log_step: float = 1 / 64
    """Quantisation step of tail_log_mass and next_logprob, nats; a power of two."""
    ranks_sha256: str
    """Hash of ``ranks.bin``, the table of ids by frequency."""
    num_draws: int | None = None
    """Draws from the tail at each position that has one; only of top_k+sampled."""
    draw_inverse_temperature: float | None = None
    """s that they are drawn at, one of the nodes: ids that are not kept, in proportion to exp(s z);
    only of top_k+sampled."""

    def __post_init__(self) -> None:
        require(self.kind in _RULES, "kind", self.kind, one_of(tuple(_RULES)))
        _RULES[self.kind](self)
        step = self.log_step
        require(
            2**-10 <= step <= 1.0 and math.frexp(step)[0] == 0.5,
            "log_step",
            step,
            "a power of two from 1/1024 to 1",
        )
        require(
            SHA256.fullmatch(self.ranks_sha256) is not None,
            "ranks_sha256",
            self.ranks_sha256,
            "64 hex digits",
        )

    @property
    def format_version(self) -> str:
        """The lowest version of the format that knows all that this says."""
        ends_at_one = self.inverse_temperatures[-1] == 1.0
        return max(_VERSIONS[self.kind], "1.0" if ends_at_one else "1.1")


def _require_top_k(spec: TargetSpec) -> None:
    _require_kept_ids(spec)
    _require_nodes(spec)
    _require_no_tail_samples(spec)


def _require_sampled(spec: TargetSpec) -> None:
    nodes = spec.inverse_temperatures
    _require_kept_ids(spec)
    require(
        len(nodes) == 1 and 0.0 < nodes[0] <= 1.0,
        "inverse_temperatures",
        nodes,
        "one number above 0, at most 1.0, where kind is 'sampled'",
    )
    require(spec.keep_mass == 1, "keep_mass", spec.keep_mass, "1 where kind is 'sampled'")
    require(
        spec.top_k <= spec.num_levels,
        "top_k",
        spec.top_k,
        f"at most the draws at a position, {spec.num_levels}",
    )
    _require_no_tail_samples(spec)


def _require_top_k_sampled(spec: TargetSpec) -> None:
    _require_kept_ids(spec)
    _require_nodes(spec)
    require(
        spec.num_draws is not None and 1 <= spec.num_draws <= _MAX_DRAWS,
        "num_draws",
        spec.num_draws,
        f"from 1 to {_MAX_DRAWS} where kind is 'top_k+sampled'",
    )
    require(
        spec.draw_inverse_temperature in spec.inverse_temperatures,
        "draw_inverse_temperature",
        spec.draw_inverse_temperature,
        f"one of inverse_temperatures {spec.inverse_temperatures} where kind is 'top_k+sampled'",
    )


_RULES: dict[str, Callable[[TargetSpec], None]] = {
    "top_k": _require_top_k,
    "sampled": _require_sampled,
    "top_k+sampled": _require_top_k_sampled,
}
"""What a spec of each kind has to satisfy."""

_VERSIONS: dict[str, str] = {"top_k": "1.0", "sampled": "1.0", "top_k+sampled": "1.1"}
"""The version of the format that each kind came with."""


def _require_kept_ids(spec: TargetSpec) -> None:
    """Bounds of what every kind that keeps ids says of them."""
    require(1 <= spec.top_k <= 65_535, "top_k", spec.top_k, "from 1 to 65535")
    require(0.0 < spec.keep_mass <= 1.0, "keep_mass", spec.keep_mass, "above 0, at most 1")
    require(
        2 <= spec.num_levels <= _MAX_LEVELS,
        "num_levels",
        spec.num_levels,
        f"from 2 to {_MAX_LEVELS}",
    )


def _require_nodes(spec: TargetSpec) -> None:
    """Bounds of the nodes at which the log-mass of a tail is stored."""
    nodes = spec.inverse_temperatures
    require(
        1 <= len(nodes) <= 8
        and nodes[-1] == 1.0
        and nodes[0] > 0.0
        and all(low < high for low, high in pairwise(nodes)),
        "inverse_temperatures",
        nodes,
        "1 to 8 rising numbers above 0, the last of them 1.0",
    )


def _require_no_tail_samples(spec: TargetSpec) -> None:
    for name in ("num_draws", "draw_inverse_temperature"):
        value = getattr(spec, name)
        require(value is None, name, value, "left out unless kind is 'top_k+sampled'")
