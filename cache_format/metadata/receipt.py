"""Receipts: one for each finished shard, one for the teacher's files.

A receipt is written once, when what it tells of is whole. It is a sealed JSON file (see
``sealed_json.py``). Here are the types and their way to bytes and back; the writer decides when
they are written, the reader what to make of them.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from cache_format.errors import CorruptFileError
from cache_format.metadata import layout, sealed_json
from cache_format.metadata.spec import CacheSpec, Split
from cache_format.storage.base import Storage, read_file

_SHA256 = re.compile(r"[0-9a-f]{64}")
_RECEIPT_STEP = layout.make_again("To make it again,", "nothing else is.")


class Segment(NamedTuple):
    """Bytes of a shard that are read, and compared with their hash, together."""

    offset: int
    length: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ShardStatistics:
    """Sums over a shard, taken when it was encoded."""

    column_bytes: dict[str, int]
    """Bytes of each column's cells, without Arrow's framing."""
    num_scored: int
    """Scored positions."""
    sums: dict[str, float]
    """What the kind of target sums up over them, such as ``kept_mass``."""


@dataclass(frozen=True, kw_only=True)
class ConversationCounts:
    """What became of a unit's conversations that are not in its rows as they are."""

    num_split: int = 0
    """Too long for a row, and in the rows in parts."""
    num_incomplete: int = 0
    """Of these, those of which a part was left out because it alone is too long for a row."""
    num_too_long: int = 0
    """Left out: too long for a row."""
    num_unscored: int = 0
    """Left out: none of their positions is scored."""

    def __post_init__(self) -> None:
        for name, count in vars(self).items():
            if count < 0:
                raise ValueError(f"{name}: must not be negative, found {count}")

    def __add__(self, other: "ConversationCounts") -> "ConversationCounts":
        return ConversationCounts(
            **{name: count + getattr(other, name) for name, count in vars(self).items()}
        )


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One finished shard, as the manifest lists it."""

    unit: int
    file: str
    """Path relative to the cache."""
    corpus: str | None = None
    """Name of the unit's corpus, where there are several."""
    split: Split | None = None
    """The split of the whole unit; None where its rows are divided, see ``splits.py``."""
    num_rows: int
    num_tokens: int
    """Positions, scored or not."""
    num_documents: int
    num_skipped_documents: int
    num_dropped_tokens: int
    """Tokens at the unit's end that did not fill a row."""
    corpus_position: str
    """Where in the corpus the unit lies, for people to read."""
    num_bytes: int
    sha256: str
    receipt_sha256: str
    """Hash of the receipt's file."""
    statistics: ShardStatistics
    conversations: ConversationCounts | None = None
    """None where documents are plain text."""

    def __post_init__(self) -> None:
        for name in ("sha256", "receipt_sha256"):
            _require_sha256(name, getattr(self, name))
        expected = layout.shard_file(self.unit, self.sha256)
        if self.file != expected:
            raise ValueError(f"file: expected {expected!r}, found {self.file!r}")
        for name in ("unit", "num_rows", "num_tokens", "num_bytes", "num_documents"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must not be negative, found {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """One finished shard and its segments: the schema, then each record batch's one or two."""

    entry: ShardEntry
    segments: tuple[Segment, ...]


@dataclass(frozen=True, kw_only=True)
class TeacherReceipt:
    """The files in ``teacher/``."""

    files: dict[str, tuple[int, str]]
    """Size and SHA-256 by name."""
    receipt_sha256: str

    def __post_init__(self) -> None:
        for name, (size, sha256) in self.files.items():
            layout.require_attachment_name(name)
            if size < 0:
                raise ValueError(f"files.{name}: size must not be negative, found {size}")
            _require_sha256(f"files.{name}", sha256)
            for directory in PurePosixPath(name).parents:
                if str(directory) in self.files:
                    raise ValueError(
                        f"files: {str(directory)!r} is in the way of another file: {name!r} needs "
                        "a directory of that name"
                    )


def num_segments(num_rows: int, spec: CacheSpec) -> int:
    """How many segments a shard has."""
    return 1 + -(-num_rows // spec.rows_per_batch) * _segments_per_batch(spec)


def segments_of_batch(number: int, spec: CacheSpec) -> tuple[int, ...]:
    """Which segments hold record batch ``number``: targets, and the sketch if there is one."""
    first = 1 + number * _segments_per_batch(spec)
    return tuple(range(first, first + _segments_per_batch(spec)))


def receipt_bytes(receipt: Receipt, spec: CacheSpec) -> bytes:
    """The bytes of a shard's receipt; its entry's own ``receipt_sha256`` is not part of them."""
    fields: dict[str, Any] = sealed_json.to_plain(receipt.entry)
    del fields["receipt_sha256"]
    return sealed_json.seal(
        header(spec) | fields | {"segments": sealed_json.to_plain(receipt.segments)}
    )


def read_receipt(
    storage: Storage, unit: int, spec: CacheSpec, expected_sha256: str | None
) -> Receipt:
    """The receipt of ``unit``, which must have the hash ``expected_sha256`` if one is given."""
    name = layout.receipt_file(unit)
    data = read_file(storage, name, _RECEIPT_STEP)
    return receipt_from_bytes(data, storage.locate(name), unit, spec, expected_sha256)


def receipt_from_bytes(
    data: bytes, path: Path | str, unit: int, spec: CacheSpec, expected_sha256: str | None
) -> Receipt:
    """The receipt of ``unit`` in the file ``path`` that holds ``data``; see ``read_receipt``."""
    step = layout.unit_step(unit, "it")
    fields, sha256 = _unsealed(data, path, step, spec, expected_sha256)
    entry: ShardEntry = parse(ShardEntry, fields | {"receipt_sha256": sha256}, path, step)
    segments = parse(tuple[tuple[int, int, str], ...], fields.get("segments"), path, step)
    split, corpus = spec.split_of(unit), spec.corpus_name_of(unit)
    if (entry.unit, entry.split) != (unit, split):
        raise CorruptFileError(
            f"{path}: is of unit {entry.unit} and split {entry.split}, expected unit {unit} and "
            f"split {split}.",
            step,
        )
    if entry.corpus != corpus:
        raise CorruptFileError(f"{path}: is of corpus {entry.corpus!r}, expected {corpus!r}.", step)
    receipt = Receipt(entry=entry, segments=tuple(Segment(*segment) for segment in segments))
    if problem := _misfit(receipt, spec):
        raise CorruptFileError(f"{path}: {problem}.", step)
    return receipt


def teacher_receipt_bytes(files: dict[str, tuple[int, str]], spec: CacheSpec) -> bytes:
    """The bytes of the receipt of ``teacher/``."""
    return sealed_json.seal(header(spec) | {"files": sealed_json.to_plain(files)})


def read_teacher_receipt(
    storage: Storage, spec: CacheSpec, expected_sha256: str | None
) -> TeacherReceipt:
    """The receipt of ``teacher/``, which must have the hash ``expected_sha256`` if one is given."""
    name, step = layout.TEACHER_RECEIPT, layout.TEACHER_STEP
    data, path = read_file(storage, name, _RECEIPT_STEP), storage.locate(name)
    fields, sha256 = _unsealed(data, path, step, spec, expected_sha256)
    fields |= {"receipt_sha256": sha256}
    receipt: TeacherReceipt = parse(TeacherReceipt, fields, path, step)
    return receipt


def header(spec: CacheSpec) -> dict[str, Any]:
    """What every sealed file of a cache begins with."""
    return {"format_version": sealed_json.FORMAT_VERSION, "cache_id": spec.cache_id}


def parse(hint: Any, value: object, path: Path | str, step: str) -> Any:
    """A value of type ``hint``; fields that only a later minor version knows are passed over."""
    try:
        return sealed_json.from_plain(hint, value, ignore_unknown=True)
    except ValueError as error:
        raise CorruptFileError(f"{path}: {error}.", step) from error


def _unsealed(
    data: bytes, path: Path | str, step: str, spec: CacheSpec, expected_sha256: str | None
) -> tuple[dict[str, Any], str]:
    sha256 = hashlib.sha256(data).hexdigest()
    fields = sealed_json.unseal(data, path, step)
    if expected_sha256 not in (None, sha256):
        raise CorruptFileError(
            f"{path}: not the file that the manifest names: expected SHA-256 {expected_sha256}, "
            f"found {sha256}.",
            step,
        )
    if fields.get("cache_id") != spec.cache_id:
        raise CorruptFileError(
            f"{path}: belongs to another cache: expected cache_id {spec.cache_id}, "
            f"found {fields.get('cache_id')}.",
            step,
        )
    return fields, sha256


def _misfit(receipt: Receipt, spec: CacheSpec) -> str | None:
    """What of a receipt cannot be true of any shard; None where all may be."""
    entry = receipt.entry
    if entry.num_tokens != entry.num_rows * spec.sequence_length:
        return f"{entry.num_tokens} tokens are not {entry.num_rows} rows of {spec.sequence_length}"
    if len(receipt.segments) != num_segments(entry.num_rows, spec) or any(
        min(segment.offset, segment.length) < 0 or segment.offset + segment.length > entry.num_bytes
        for segment in receipt.segments
    ):
        return "its segments do not match its shard"
    return None


def _require_sha256(name: str, value: str) -> None:
    if _SHA256.fullmatch(value) is None:
        raise ValueError(f"{name}: expected 64 hex digits, found {value!r}")


def _segments_per_batch(spec: CacheSpec) -> int:
    return 1 if spec.sketch.kind == "none" else 2
