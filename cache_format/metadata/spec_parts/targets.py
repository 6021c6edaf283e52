"""What a cache keeps of the teacher's distribution.

A kind of target is made of parts: the largest logits, ids drawn at random. A new kind is added to
``Kind`` and, with the parts that it has, to ``_PARTS``; a new part is a dataclass and a field of
``TargetSpec``.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from cache_format.metadata.spec_parts.bounds import SHA256, one_of, require

Kind = Literal["top_k", "sampled", "top_k+sampled", "hidden", "top_k+hidden"]

Quantization = Literal["nearest", "rate_distortion"]

_MAX_IDS = 65_535
_MAX_LEVELS = 255  # a level is a byte
_MAX_DRAWS = 255
_MAX_CLASSES = 16
_MAX_ROWS_OF_FREQUENCIES = 1 << 14  # a reader's tables are 23 KB for each


@dataclass(frozen=True, kw_only=True)
class KeptLogits:
    """The largest logits of a position, and what the others weigh."""

    top_k: int
    """The most ids kept of a position."""
    keep_mass: float
    """Ids are kept until they hold this share of the mass; 1 keeps top_k of them."""
    inverse_temperatures: tuple[float, ...]
    """Nodes s = 1/T at which the log-mass of the tail is stored: rising, the last is 1."""
    num_levels: int = 128
    """Steps of the fourth root of a probability between 0 and 1."""

    def __post_init__(self) -> None:
        require(1 <= self.top_k <= _MAX_IDS, "top_k", self.top_k, f"from 1 to {_MAX_IDS}")
        require(0.0 < self.keep_mass <= 1.0, "keep_mass", self.keep_mass, "above 0, at most 1")
        nodes = self.inverse_temperatures
        require(
            1 <= len(nodes) <= 8
            and nodes[-1] == 1.0
            and nodes[0] > 0.0
            and all(low < high for low, high in pairwise(nodes)),
            "inverse_temperatures",
            nodes,
            "1 to 8 rising numbers above 0, the last of them 1.0",
        )
        require(
            2 <= self.num_levels <= _MAX_LEVELS,
            "num_levels",
            self.num_levels,
            f"from 2 to {_MAX_LEVELS}",
        )


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Ids drawn with replacement, in proportion to exp(s z) (RS-KD, arXiv 2503.16870)."""

    num_draws: int
    """Draws at each position: from all ids, or from those that are not kept."""
    inverse_temperature: float
    """s = 1/T that they are drawn at, at most 1."""

    def __post_init__(self) -> None:
        require(
            1 <= self.num_draws <= _MAX_DRAWS,
            "num_draws",
            self.num_draws,
            f"from 1 to {_MAX_DRAWS}",
        )
        s = self.inverse_temperature
        require(0.0 < s <= 1.0, "inverse_temperature", s, "above 0, at most 1")


KL_TEMPERATURES = (1.0, 1.5, 2.0)
"""Those that ``CodedStates.self_kl`` is at."""


@dataclass(frozen=True, kw_only=True)
class CodedStates:
    """The teacher's last hidden state, as the coefficients of a transform rounded to a step.

    From it and the teacher's head a reader rebuilds the whole distribution, at any temperature.
    """

    max_kl: float
    """What the step was chosen for: KL(teacher ‖ decoded) in nats at T = 1, a mean over
    positions."""
    step: float
    """Quantization step of a coefficient, in nats: half its square is about the KL of one step."""
    quantization: Quantization
    """How the writer chose whole numbers: the nearest, or those of the least loss for their bits. A
    reader need not know."""
    num_components: int
    """J: coefficients of a position; the others are always 0."""
    num_symbols: int
    """S: symbols that they are coded as."""
    num_classes: int
    """K: classes of positions, each with frequencies of these symbols."""
    num_raw_bits: int
    """R: components, the first ones, whose lowest bit is stored as it is."""
    self_kl: tuple[float, ...]
    """KL(teacher ‖ decoded) measured on the first unit at ``KL_TEMPERATURES``, nats."""
    transform_sha256: str
    """Hash of ``transform.bin``."""

    def __post_init__(self) -> None:
        require(0.0 < self.max_kl <= 10.0, "max_kl", self.max_kl, "above 0, at most 10")
        require(0.0 < self.step <= 1e6, "step", self.step, "above 0, at most 1,000,000")
        allowed = get_args(Quantization)
        require(self.quantization in allowed, "quantization", self.quantization, one_of(allowed))
        require(
            len(self.self_kl) == len(KL_TEMPERATURES)
            and all(0.0 <= kl < math.inf for kl in self.self_kl),
            "self_kl",
            self.self_kl,
            f"{len(KL_TEMPERATURES)} numbers of 0 or more",
        )
        _require_coded(self)


@dataclass(frozen=True, kw_only=True)
class TailMoment:
    """The first moment of the teacher's tail in a small basis, and the tail's entropy, at every
    node, as the coefficients of a transform rounded to a step.

    With them, a student whose head is the teacher's learns how the tail's mass is spread, as far as
    the basis tells (``tables/tail_moment.py``).
    """

    dim: int
    """d: vectors of the basis."""
    step: float
    """Quantization step of a coefficient, in the units of the head's rows."""
    num_components: int
    """J: coefficients of a position; the others are always 0."""
    num_symbols: int
    """S: symbols that they are coded as."""
    num_classes: int
    """K: classes of positions, each with frequencies of these symbols."""
    num_raw_bits: int
    """R: components, the first ones, whose lowest bit is stored as it is."""
    transform_sha256: str
    """Hash of ``tail_moment.bin``."""

    def __post_init__(self) -> None:
        require(1 <= self.dim <= _MAX_IDS, "dim", self.dim, f"from 1 to {_MAX_IDS}")
        require(0.0 < self.step <= 1e6, "step", self.step, "above 0, at most 1,000,000")
        _require_coded(self)


def _require_coded(part: CodedStates | TailMoment) -> None:
    """What parts that are coefficients of a transform have in common."""
    most = 65_535
    require(
        1 <= part.num_components <= most,
        "num_components",
        part.num_components,
        f"from 1 to {most}",
    )
    require(
        1 <= part.num_symbols <= part.num_components,
        "num_symbols",
        part.num_symbols,
        f"from 1 to num_components ({part.num_components})",
    )
    most_classes = max(1, min(_MAX_CLASSES, _MAX_ROWS_OF_FREQUENCIES // part.num_symbols))
    require(
        1 <= part.num_classes <= most_classes,
        "num_classes",
        part.num_classes,
        f"from 1 to {most_classes} where num_symbols is {part.num_symbols}",
    )
    require(
        0 <= part.num_raw_bits <= part.num_components,
        "num_raw_bits",
        part.num_raw_bits,
        f"from 0 to num_components ({part.num_components})",
    )
    require(
        SHA256.fullmatch(part.transform_sha256) is not None,
        "transform_sha256",
        part.transform_sha256,
        "64 hex digits",
    )


@dataclass(frozen=True, kw_only=True)
class TargetSpec:
    """What is kept of the teacher's distribution at a position."""

    kind: Kind
    """The largest logits; ids drawn from all; the largest logits and ids drawn from the rest; the
    hidden state that the head is applied to; or the largest logits and that state."""
    kept: KeptLogits | None = None
    draws: Draws | None = None
    hidden: CodedStates | None = None
    moment: TailMoment | None = None
    """Of kinds whose tail is a mass, if wanted."""
    log_step: float = 1 / 64
    """Quantization step of log-masses and of the next token's log-probability, nats; a power of
    two."""

    def __post_init__(self) -> None:
        require(self.kind in _PARTS, "kind", self.kind, one_of(tuple(_PARTS)))
        for name in _ALL_PARTS:
            is_there, is_due = getattr(self, name) is not None, name in _PARTS[self.kind]
            allowed = f"there where kind is {self.kind!r}" if is_due else "left out"
            require(is_there == is_due, name, "something" if is_there else None, allowed)
        require(
            self.moment is None or self.kind in KINDS_WITH_MOMENT,
            "moment",
            "something",
            f"left out unless kind is {one_of(KINDS_WITH_MOMENT)}",
        )
        step = self.log_step
        require(
            2**-10 <= step <= 1.0 and math.frexp(step)[0] == 0.5,
            "log_step",
            step,
            "a power of two from 1/1024 to 1",
        )
        if self.kept is not None and self.draws is not None:
            require(
                self.draws.inverse_temperature in self.kept.inverse_temperatures,
                "draws.inverse_temperature",
                self.draws.inverse_temperature,
                f"one of kept.inverse_temperatures {self.kept.inverse_temperatures}",
            )

    @property
    def inverse_temperatures(self) -> tuple[float, ...]:
        """Nodes 1/T between which the distribution is known: those of kept logits, or else the one
        that ids are drawn at. Empty where it is known at every temperature."""
        if self.kept is not None:
            return self.kept.inverse_temperatures
        return () if self.draws is None else (self.draws.inverse_temperature,)

    @property
    def logits(self) -> KeptLogits:
        """``kept``, of a kind that has it."""
        assert self.kept is not None, self.kind
        return self.kept

    @property
    def sampling(self) -> Draws:
        """``draws``, of a kind that has them."""
        assert self.draws is not None, self.kind
        return self.draws

    @property
    def states(self) -> CodedStates:
        """``hidden``, of a kind that has it."""
        assert self.hidden is not None, self.kind
        return self.hidden

    @property
    def tail_moment(self) -> TailMoment:
        """``moment``, of targets that have it."""
        assert self.moment is not None, self.kind
        return self.moment


KINDS_WITH_MOMENT: tuple[Kind, ...] = ("top_k", "top_k+sampled")
"""Those that may have ``moment``: what is not kept is known by its mass alone, or by draws."""

_ALL_PARTS = ("kept", "draws", "hidden")
_PARTS: dict[str, tuple[str, ...]] = {
    "top_k": ("kept",),
    "sampled": ("draws",),
    "top_k+sampled": ("kept", "draws"),
    "hidden": ("hidden",),
    "top_k+hidden": ("kept", "hidden"),
}
"""The parts of each kind."""
