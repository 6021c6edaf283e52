"""What determines a cache: every field here changes its bytes, and nothing else does.

``CacheSpec.cache_id`` is the cache's identity. Fields that came with version 1.1 or later are left
out of it while they are None, so that an older cache keeps the identity that it had. Imports
nothing heavy: the command line builds a spec's parts before anything else is loaded.
"""

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

from cache_format.metadata import sealed_json
from cache_format.metadata.sealed_json import FORMAT_VERSION

__all__ = [
    "FORMAT_VERSION",
    "CacheSpec",
    "CorpusSpec",
    "SketchSpec",
    "Split",
    "TargetSpec",
    "TeacherSpec",
    "differences",
]

Split = Literal["train", "validation"]

_MAX_IDS = 2**24
_MAX_NUMBERS_OF_ROW = 2**26
_MAX_NUMBERS_OF_PROJECTION = 2**24
_MAX_LEVELS = 255  # a level is a byte
_MAX_DRAWS = 255
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TARGET_KINDS = ("top_k", "sampled", "top_k+sampled")
_SKETCH_KINDS = ("rademacher", "pca", "none")
_SKETCH_DTYPES = ("int8", "float16", "float32")
_LAYER = "[1-9][0-9]{0,8}"
_HIDDEN_STATES = re.compile(
    f"mean_over_layers|last|layers:{_LAYER}(,{_LAYER})*|random_layers:{_LAYER}"
)


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """The model whose predictions the cache holds."""

    source: str
    """Hub id, or name of the directory it was read from."""
    revision: str
    """Commit on the Hub; empty for a directory, which its hashes pin."""
    weights_sha256: str
    """Hash over the weight files."""
    tokenizer_sha256: str
    """Hash over the tokenizer's files."""
    dtype: str
    """Precision of the body, such as ``bfloat16``."""
    attention: str
    """Attention implementation."""
    hidden_size: int
    """Width of a hidden state."""
    num_layers: int
    """Layers of the body."""
    vocab_size: int
    """Ids that take part in the softmax: 0 to vocab_size − 1."""
    head_rows: int
    """Rows of the head, padding included."""
    eos_token_id: int
    """Id that ends a document."""

    def __post_init__(self) -> None:
        _require(self.hidden_size >= 1, "hidden_size", self.hidden_size, "1 or more")
        _require(self.num_layers >= 1, "num_layers", self.num_layers, "1 or more")
        _require(
            1 <= self.head_rows <= _MAX_IDS, "head_rows", self.head_rows, f"from 1 to {_MAX_IDS}"
        )
        _require(
            1 <= self.vocab_size <= self.head_rows,
            "vocab_size",
            self.vocab_size,
            f"from 1 to head_rows ({self.head_rows}): a tokenizer larger than the head cannot work",
        )
        _require(
            0 <= self.eos_token_id < self.vocab_size,
            "eos_token_id",
            self.eos_token_id,
            f"below vocab_size ({self.vocab_size})",
        )


@dataclass(frozen=True, kw_only=True)
class CorpusSpec:
    """The documents, their order, and how they are cut into units."""

    source: str
    """Hub dataset id, or a name for local files."""
    config: str
    """Configuration of the Hub dataset."""
    split: str
    """Split of the Hub dataset."""
    revision: str
    """Commit on the Hub; empty for local files."""
    files: tuple[tuple[str, str], ...]
    """Name and SHA-256 of every file in reading order; no hash where the revision pins it."""
    text_column: str
    """Column that holds a document's text."""
    on_bad_document: str
    """What a document that is not text does."""
    documents_per_unit: int
    """Documents in one unit, hence in one shard."""
    special_tokens: str | None = None
    """``text``: special tokens written out in a document are tokenized like any other text. None
    in a cache of before version 1.2, where each became its control id."""
    text_documents: str | None = None
    """What a document is in plain text: ``paragraph`` or ``file``; None where it is a line, and for
    other kinds of file."""

    def __post_init__(self) -> None:
        _require(
            self.documents_per_unit >= 1, "documents_per_unit", self.documents_per_unit, "1 or more"
        )
        _require(
            self.special_tokens in (None, "text"),
            "special_tokens",
            self.special_tokens,
            "'text', or left out",
        )
        _require(
            self.text_documents in (None, "paragraph", "file"),
            "text_documents",
            self.text_documents,
            "'paragraph' or 'file', or left out",
        )


@dataclass(frozen=True, kw_only=True)
class TargetSpec:
    """What is kept of the teacher's distribution at a position."""

    kind: Literal["top_k", "sampled", "top_k+sampled"] = "top_k"
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
        nodes = self.inverse_temperatures
        _require(self.kind in _TARGET_KINDS, "kind", self.kind, _one_of(_TARGET_KINDS))
        _require(1 <= self.top_k <= 65_535, "top_k", self.top_k, "from 1 to 65535")
        _require(0.0 < self.keep_mass <= 1.0, "keep_mass", self.keep_mass, "above 0, at most 1")
        if self.kind == "sampled":
            self._require_samples()
        _require(
            1 <= len(nodes) <= 8
            and (nodes[-1] == 1.0 or self.kind == "sampled")
            and nodes[0] > 0.0
            and all(low < high for low, high in pairwise(nodes)),
            "inverse_temperatures",
            nodes,
            "1 to 8 rising numbers above 0, the last of them 1.0",
        )
        _require(
            2 <= self.num_levels <= _MAX_LEVELS,
            "num_levels",
            self.num_levels,
            f"from 2 to {_MAX_LEVELS}",
        )
        step = self.log_step
        _require(
            2**-10 <= step <= 1.0 and math.frexp(step)[0] == 0.5,
            "log_step",
            step,
            "a power of two from 1/1024 to 1",
        )
        _require(
            _SHA256.fullmatch(self.ranks_sha256) is not None,
            "ranks_sha256",
            self.ranks_sha256,
            "64 hex digits",
        )
        self._require_draws()

    def _require_samples(self) -> None:
        nodes = self.inverse_temperatures
        _require(
            len(nodes) == 1 and 0.0 < nodes[0] <= 1.0,
            "inverse_temperatures",
            nodes,
            "one number above 0, at most 1.0, where kind is 'sampled'",
        )
        _require(self.keep_mass == 1, "keep_mass", self.keep_mass, "1 where kind is 'sampled'")
        _require(
            self.top_k <= self.num_levels,
            "top_k",
            self.top_k,
            f"at most the draws at a position, {self.num_levels}",
        )

    def _require_draws(self) -> None:
        num_draws, node = self.num_draws, self.draw_inverse_temperature
        if self.kind != "top_k+sampled":
            for name, value in (("num_draws", num_draws), ("draw_inverse_temperature", node)):
                _require(value is None, name, value, "left out unless kind is 'top_k+sampled'")
            return
        _require(
            num_draws is not None and 1 <= num_draws <= _MAX_DRAWS,
            "num_draws",
            num_draws,
            f"from 1 to {_MAX_DRAWS} where kind is 'top_k+sampled'",
        )
        _require(
            node in self.inverse_temperatures,
            "draw_inverse_temperature",
            node,
            f"one of inverse_temperatures {self.inverse_temperatures} where kind is "
            "'top_k+sampled'",
        )


@dataclass(frozen=True, kw_only=True)
class SketchSpec:
    """How a position's hidden state is projected."""

    kind: Literal["rademacher", "pca", "none"]
    """Random signs drawn anew for every unit; principal components, the same for all; or no hidden
    states at all."""
    hidden_states: str = "mean_over_layers"
    """Which of the teacher's hidden states are projected, see ``sketch.chosen_layers``:
    ``mean_over_layers``, ``last``, ``layers:4,12`` (the mean of these) or ``random_layers:2``."""
    dim: int
    """Numbers per position; 0 when there is no sketch."""
    dtype: Literal["int8", "float16", "float32"] = "int8"
    """How they are stored; int8 with a scale for each position."""
    projection_sha256: str | None = None
    """Hash of ``projection.bin``, the principal components; only of pca."""

    def __post_init__(self) -> None:
        _require(self.kind in _SKETCH_KINDS, "kind", self.kind, _one_of(_SKETCH_KINDS))
        if self.kind == "none":
            _require(self.dim == 0, "dim", self.dim, "0 when kind is 'none'")
        else:
            _require(1 <= self.dim <= 65_535, "dim", self.dim, "from 1 to 65535")
        _require(self.dtype in _SKETCH_DTYPES, "dtype", self.dtype, _one_of(_SKETCH_DTYPES))
        _require(
            _HIDDEN_STATES.fullmatch(self.hidden_states) is not None
            and all(low < high for low, high in pairwise(self.named_layers)),
            "hidden_states",
            self.hidden_states,
            "mean_over_layers, last, layers:4,12 (rising, from 1) or random_layers:2",
        )
        found = self.projection_sha256
        if self.kind == "pca":
            _require(
                found is not None and _SHA256.fullmatch(found) is not None,
                "projection_sha256",
                found,
                "64 hex digits where kind is 'pca'",
            )
        else:
            _require(found is None, "projection_sha256", found, "left out unless kind is 'pca'")

    @property
    def named_layers(self) -> tuple[int, ...]:
        """The numbers in ``hidden_states``: layers, or of random layers their number."""
        _, _, numbers = self.hidden_states.partition(":")
        return tuple(map(int, numbers.split(","))) if numbers else ()


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """Everything that determines a cache's content."""

    teacher: TeacherSpec
    corpus: CorpusSpec
    targets: TargetSpec
    sketch: SketchSpec
    sequence_length: int
    """T: positions of a row."""
    validation_every: int
    """n: units 0, n, 2n, … are validation, or one in n rows of every unit."""
    validation_split: Literal["rows"] | None = None
    """``rows``: the last rows of every unit are validation, see ``splits.py``; None: whole units
    are."""
    rows_per_batch: int = 4
    """Rows of a record batch, the least that a random read decodes."""
    seed: int
    """Seed of the sketch's signs."""

    def __post_init__(self) -> None:
        _require(
            2 <= self.sequence_length <= 65_535,
            "sequence_length",
            self.sequence_length,
            "from 2 to 65535",
        )
        _require(self.validation_every >= 2, "validation_every", self.validation_every, "2 or more")
        _require(
            self.validation_split in (None, "rows"),
            "validation_split",
            self.validation_split,
            "'rows', or left out",
        )
        _require(
            1 <= self.rows_per_batch <= 65_535,
            "rows_per_batch",
            self.rows_per_batch,
            "from 1 to 65535",
        )
        _require(0 <= self.seed < 2**63, "seed", self.seed, "from 0 to 2^63 − 1")
        _require(
            self.targets.top_k <= self.teacher.vocab_size,
            "targets.top_k",
            self.targets.top_k,
            f"at most teacher.vocab_size ({self.teacher.vocab_size}): there are no more ids",
        )
        for name, width in (("targets.top_k", self.targets.top_k), ("sketch.dim", self.sketch.dim)):
            _require(
                self.sequence_length * width <= _MAX_NUMBERS_OF_ROW,
                name,
                width,
                f"at most {_MAX_NUMBERS_OF_ROW} / sequence_length: a row has to fit in memory",
            )
        self._require_sketch()

    def _require_sketch(self) -> None:
        """What is projected, and with what, is the teacher's."""
        sketch, teacher = self.sketch, self.teacher
        _require(
            max(sketch.named_layers, default=1) <= teacher.num_layers,
            "sketch.hidden_states",
            sketch.hidden_states,
            f"of layers up to teacher.num_layers ({teacher.num_layers})",
        )
        if sketch.kind == "pca":
            most = min(teacher.hidden_size, _MAX_NUMBERS_OF_PROJECTION // teacher.hidden_size)
            _require(
                sketch.dim <= most,
                "sketch.dim",
                sketch.dim,
                f"at most {most} where kind is 'pca' and teacher.hidden_size {teacher.hidden_size}",
            )

    @property
    def format_version(self) -> str:
        """The lowest version of the format that knows all that the spec says."""
        targets, sketch, corpus = self.targets, self.sketch, self.corpus
        optional = (self.validation_split, corpus.special_tokens, corpus.text_documents)
        if any(field is not None for field in optional):
            return "1.2"
        is_of_first_version = (
            targets.kind in ("top_k", "sampled")
            and targets.inverse_temperatures[-1] == 1.0
            and sketch.kind in ("rademacher", "none")
            and sketch.hidden_states == "mean_over_layers"
        )
        return "1.0" if is_of_first_version else "1.1"

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON values."""
        value: dict[str, Any] = sealed_json.to_plain(self)
        return value

    @classmethod
    def from_json(cls, value: object) -> "CacheSpec":
        """The spec that ``to_json`` gave; raises ValueError naming a field that is not as it was.

        An unknown field is refused: it would change what the rest means.
        """
        spec: CacheSpec = sealed_json.from_plain(cls, value)
        return spec

    def canonical_json(self) -> bytes:
        """The bytes that are hashed to the cache's identity."""
        return sealed_json.canonical_json(self.to_json())

    @cached_property
    def cache_id(self) -> str:
        """SHA-256 of the canonical spec, in hex."""
        return hashlib.sha256(self.canonical_json()).hexdigest()

    def split_of(self, unit: int) -> Split | None:
        """The split that all of ``unit`` belongs to; None where its rows are divided."""
        if self.validation_split == "rows":
            return None
        return "validation" if unit % self.validation_every == 0 else "train"


def differences(expected: CacheSpec, found: CacheSpec) -> list[str]:
    """Every field in which two specs differ, as ``teacher.dtype: expected 'a', found 'b'``."""
    ours, theirs = (dict(_leaves(spec.to_json())) for spec in (expected, found))
    return [
        f"{name}: expected {ours.get(name)!r}, found {theirs.get(name)!r}"
        for name in ours | theirs
        if ours.get(name) != theirs.get(name)
    ]


def _leaves(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _leaves(item, f"{prefix}{key}.")
        else:
            yield prefix + key, item


def _one_of(allowed: tuple[str, ...]) -> str:
    return f"{', '.join(map(repr, allowed[:-1]))} or {allowed[-1]!r}"


def _require(holds: bool, name: str, found: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name}: must be {allowed}, found {found!r}")
