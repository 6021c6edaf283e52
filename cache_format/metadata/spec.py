"""What determines a cache: every field here changes its bytes, and nothing else does.

``CacheSpec.cache_id`` is the cache's identity. Imports nothing heavy: the command line builds a
spec's parts before anything else is loaded.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

from cache_format.metadata import sealed_json
from cache_format.metadata.interleaving import Interleaving
from cache_format.metadata.sealed_json import FORMAT_VERSION
from cache_format.metadata.spec_parts.bounds import SHA256, one_of, require
from cache_format.metadata.spec_parts.corpus import LONGEST_PERIOD, CorpusShare, CorpusSpec
from cache_format.metadata.spec_parts.sketch import SketchSpec
from cache_format.metadata.spec_parts.targets import TailMoment, TargetSpec
from cache_format.metadata.spec_parts.teacher import TeacherSpec

__all__ = ["FORMAT_VERSION", "CacheSpec", "Split", "differences"]

Split = Literal["train", "validation"]

_MAX_NUMBERS_OF_ROW = 2**26
_MAX_NUMBERS_OF_PROJECTION = 2**24


class UnitPlace(NamedTuple):
    """What a unit of a cache is of its corpus."""

    corpus: int
    """Which of the cache's corpora."""
    number: int
    """The number of the unit among those of this corpus, from 0 on."""


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """Everything that determines a cache's content."""

    teacher: TeacherSpec
    corpus: CorpusSpec | None = None
    """Where the documents are from; None where there are several corpora."""
    corpora: tuple[CorpusShare, ...] | None = None
    """Several corpora, whose units take turns; None of one."""
    targets: TargetSpec
    sketch: SketchSpec
    sequence_length: int
    """T: positions of a row."""
    validation_every: int
    """n: units 0, n, 2n, … of a corpus are validation, or one in n rows of every unit."""
    validation_split: Literal["units", "rows"] = "units"
    """What is validation: whole units, or the last rows of every unit; see ``splits.py``."""
    rows_per_batch: int = 4
    """Rows of a record batch, the least that a random read decodes."""
    seed: int
    """Seed of the sketch's signs."""
    ranks_sha256: str
    """Hash of ``ranks.bin``, the table of ids by frequency."""

    def __post_init__(self) -> None:
        require(
            2 <= self.sequence_length <= 65_535,
            "sequence_length",
            self.sequence_length,
            "from 2 to 65535",
        )
        require(self.validation_every >= 2, "validation_every", self.validation_every, "2 or more")
        require(
            self.validation_split in ("units", "rows"),
            "validation_split",
            self.validation_split,
            one_of(("units", "rows")),
        )
        require(
            1 <= self.rows_per_batch <= 65_535,
            "rows_per_batch",
            self.rows_per_batch,
            "from 1 to 65535",
        )
        require(0 <= self.seed < 2**63, "seed", self.seed, "from 0 to 2^63 − 1")
        require(
            SHA256.fullmatch(self.ranks_sha256) is not None,
            "ranks_sha256",
            self.ranks_sha256,
            "64 hex digits",
        )
        self._require_corpora()
        require(
            (self.teacher.chat_template_sha256 is None)
            == all(corpus.chat is None for corpus in self.each_corpus),
            "teacher.chat_template_sha256",
            self.teacher.chat_template_sha256,
            "there if and only if there is corpus.chat",
        )
        widths = {"sketch.dim": self.sketch.dim * self.sketch.num_states}
        if self.targets.kept is not None:
            top_k = widths["targets.kept.top_k"] = self.targets.kept.top_k
            require(
                top_k <= self.teacher.vocab_size,
                "targets.kept.top_k",
                top_k,
                f"at most teacher.vocab_size ({self.teacher.vocab_size}): there are no more ids",
            )
        if self.targets.hidden is not None:
            widths["targets.hidden.num_components"] = self.targets.hidden.num_components
            self._require_transform(self.targets.hidden.num_components)
        if self.targets.moment is not None:
            widths["targets.moment.num_components"] = self.targets.moment.num_components
            self._require_moment(self.targets.moment)
        for name, width in widths.items():
            require(
                self.sequence_length * width <= _MAX_NUMBERS_OF_ROW,
                name,
                width,
                f"at most {_MAX_NUMBERS_OF_ROW} / sequence_length: a row has to fit in memory",
            )
        self._require_sketch()

    def _require_corpora(self) -> None:
        """There is one corpus, or several with names of their own."""
        require(
            (self.corpus is None) != (self.corpora is None),
            "corpora",
            None if self.corpora is None else f"{len(self.corpora)} beside corpus",
            "there if and only if corpus is not",
        )
        if self.corpora is None:
            return
        names = [share.name for share in self.corpora]
        require(len(names) >= 2, "corpora", names, "two or more")
        require(len(set(names)) == len(names), "corpora", names, "of different names")
        period = sum(share.units for share in self.corpora)
        require(period <= LONGEST_PERIOD, "corpora", period, f"of {LONGEST_PERIOD} units or fewer")

    def _require_transform(self, num_components: int) -> None:
        """A transform has no more components than the teacher's states, and fits in memory."""
        width = self.teacher.hidden_size
        most = min(width, _MAX_NUMBERS_OF_PROJECTION // width)
        require(
            num_components <= most,
            "targets.hidden.num_components",
            num_components,
            f"at most {most} where teacher.hidden_size is {width}",
        )

    def _require_moment(self, moment: TailMoment) -> None:
        """A basis has no more vectors than the teacher's width, and all of it fits in memory."""
        width = self.teacher.hidden_size
        most = min(width, _MAX_NUMBERS_OF_PROJECTION // width)
        require(
            moment.dim <= most,
            "targets.moment.dim",
            moment.dim,
            f"at most {most} where teacher.hidden_size is {width}",
        )
        num_numbers = len(self.targets.inverse_temperatures) * (moment.dim + 1)
        most = min(num_numbers, _MAX_NUMBERS_OF_PROJECTION // num_numbers)
        require(
            moment.num_components <= most,
            "targets.moment.num_components",
            moment.num_components,
            f"at most {most} where a position has {num_numbers} numbers",
        )

    def _require_sketch(self) -> None:
        """What is projected, and with what, is the teacher's."""
        sketch, teacher = self.sketch, self.teacher
        require(
            max(sketch.named_layers, default=1) <= teacher.num_layers,
            "sketch.hidden_states",
            sketch.hidden_states,
            f"of layers up to teacher.num_layers ({teacher.num_layers})",
        )
        if sketch.kind == "pca":
            most = min(teacher.hidden_size, _MAX_NUMBERS_OF_PROJECTION // teacher.hidden_size)
            require(
                sketch.dim <= most,
                "sketch.dim",
                sketch.dim,
                f"at most {most} where kind is 'pca' and teacher.hidden_size {teacher.hidden_size}",
            )

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

    @property
    def each_corpus(self) -> tuple[CorpusSpec, ...]:
        """The cache's one corpus, or all of them."""
        if self.corpora is not None:
            return tuple(share.corpus for share in self.corpora)
        assert self.corpus is not None, "there is one, or there are several"
        return (self.corpus,)

    @property
    def sole_corpus(self) -> CorpusSpec:
        """The corpus of a cache that has one."""
        (corpus,) = self.each_corpus
        return corpus

    @cached_property
    def unit_order(self) -> Interleaving:
        """Which corpus each unit is of."""
        shares = (1,) if self.corpora is None else tuple(share.units for share in self.corpora)
        return Interleaving(shares)

    def place_of(self, unit: int) -> UnitPlace:
        """The corpus that ``unit`` is of, and its number there."""
        if self.corpora is None:
            return UnitPlace(0, unit)
        corpus, number = self.unit_order.at_one(unit)
        return UnitPlace(corpus, number)

    def corpus_of(self, unit: int) -> CorpusSpec:
        """The corpus that ``unit`` is of."""
        return self.each_corpus[self.place_of(unit).corpus]

    def corpus_name_of(self, unit: int) -> str | None:
        """The name of the corpus that ``unit`` is of; None where there is only one."""
        if self.corpora is None:
            return None
        return self.corpora[self.place_of(unit).corpus].name

    def split_of(self, unit: int) -> Split | None:
        """The split that all of ``unit`` belongs to; None where its rows are divided."""
        if self.validation_split == "rows":
            return None
        is_validation = self.place_of(unit).number % self.validation_every == 0
        return "validation" if is_validation else "train"


def differences(
    expected: CacheSpec, found: CacheSpec, called: Callable[[str], str] = str
) -> list[str]:
    """Every field in which two specs differ, as ``teacher.dtype: expected 'a', found 'b'``, or
    under the name that it is ``called``."""
    ours, theirs = (dict(_leaves(spec.to_json())) for spec in (expected, found))
    return [
        f"{called(name)}: expected {ours.get(name)!r}, found {theirs.get(name)!r}"
        for name in ours | theirs
        if ours.get(name) != theirs.get(name)
    ]


def _leaves(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _leaves(item, f"{prefix}{key}.")
        elif key == "corpora":
            for number, share in enumerate(item):
                yield from _leaves(share, f"{prefix}{key}[{number}].")
        else:
            yield prefix + key, item
