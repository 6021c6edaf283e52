"""The manifest: what is in a cache, as a pure fold over its spec and its receipts.

It is the same bytes whatever the order in which the receipts came, and the root of trust in all
it names. It and ``spec.json``, which says what a cache that has no manifest yet is to become, are
sealed JSON files (see ``sealed_json.py``).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from cache_format.errors import CorruptFileError, UnsupportedFormatError
from cache_format.metadata import layout, sealed_json
from cache_format.metadata.receipt import Receipt, ShardEntry, TeacherReceipt, header, parse
from cache_format.metadata.spec import CacheSpec, Split
from cache_format.metadata.splits import rows_of_split
from cache_format.storage.base import Storage, read_file

__all__ = [
    "Manifest",
    "ShardEntry",
    "fold",
    "read_manifest",
    "read_spec",
    "require_agreement",
    "spec_bytes",
]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A cache's table of contents, and the root of trust in all it names."""

    format_version: str = sealed_json.FORMAT_VERSION
    """Version of the format that the cache is in."""
    spec: CacheSpec
    shards: tuple[ShardEntry, ...]
    """In rising order of unit."""
    teacher_receipt_sha256: str | None
    """Hash of the receipt of ``teacher/``; None while there is none."""
    num_tokens_requested: int
    """Budget of the last run that published."""
    complete: bool
    """Whether that run had reached its budget."""

    @property
    def cache_id(self) -> str:
        """Identity of the cache."""
        return self.spec.cache_id

    @property
    def num_tokens(self) -> int:
        """Positions in all shards."""
        return sum(entry.num_tokens for entry in self.shards)

    @property
    def is_whole_corpus(self) -> bool:
        """Whether the corpus ended before the budget was reached."""
        return self.complete and self.num_tokens < self.num_tokens_requested

    def rows_of(self, split: Split, entry: ShardEntry) -> range:
        """Those rows of a shard that belong to ``split``."""
        return rows_of_split(self.spec, split, entry.unit, entry.num_rows)

    def num_rows(self, split: Split) -> int:
        """Rows of ``split`` in all shards."""
        return sum(len(self.rows_of(split, entry)) for entry in self.shards)

    def to_bytes(self) -> bytes:
        """The bytes of ``manifest.json``."""
        return sealed_json.seal(header(self.spec) | sealed_json.to_plain(self))

    @classmethod
    def from_bytes(cls, data: bytes, path: Path | str) -> "Manifest":
        """The manifest in the file ``path``, its seal and spec checked."""
        step = layout.make_again("Delete it and", "it is made again from the receipts.")
        fields = sealed_json.unseal(data, path, step)
        spec = _spec_of(fields, path)
        manifest: Manifest = parse(cls, fields, path, step)
        units = [entry.unit for entry in manifest.shards]
        if any(low >= high for low, high in pairwise(units)):
            raise CorruptFileError(f"{path}: shards: units are not in increasing order.", step)
        for entry in manifest.shards:
            if entry.split != spec.split_of(entry.unit):
                raise CorruptFileError(f"{path}: unit {entry.unit}: wrong split.", step)
            if entry.corpus != spec.corpus_name_of(entry.unit):
                raise CorruptFileError(f"{path}: unit {entry.unit}: wrong corpus.", step)
        return manifest


def fold(
    spec: CacheSpec,
    entries: Iterable[ShardEntry],
    teacher: TeacherReceipt | None,
    *,
    num_tokens_requested: int,
    complete: bool,
) -> Manifest:
    """The manifest of a cache with these receipts, in whatever order they come."""
    return Manifest(
        spec=spec,
        shards=tuple(sorted(entries, key=lambda entry: entry.unit)),
        teacher_receipt_sha256=None if teacher is None else teacher.receipt_sha256,
        num_tokens_requested=num_tokens_requested,
        complete=complete,
    )


def read_manifest(storage: Storage) -> Manifest:
    """The manifest of the cache in ``storage``, its seal and spec checked."""
    data = read_file(
        storage, layout.MANIFEST, layout.make_again("To make it,", "finished units are kept.")
    )
    return Manifest.from_bytes(data, storage.locate(layout.MANIFEST))


def spec_bytes(spec: CacheSpec) -> bytes:
    """The bytes of ``spec.json``."""
    return sealed_json.seal(header(spec) | {"spec": spec.to_json()})


def require_agreement(storage: Storage, entry: ShardEntry, receipt: Receipt) -> None:
    """Raise CorruptFileError unless the manifest's ``entry`` is what the receipt says."""
    if entry != receipt.entry:
        raise CorruptFileError(
            f"{storage.locate(layout.MANIFEST)}: disagrees about unit {entry.unit} with "
            f"{layout.receipt_file(entry.unit)}.",
            layout.make_again(
                "Delete the manifest and", "only it is made again, from the receipts."
            ),
        )


def read_spec(storage: Storage) -> CacheSpec:
    """The spec in ``spec.json``."""
    step = layout.make_again(
        f"If there is a {layout.MANIFEST} in the same directory, delete this file if it exists, "
        "and",
        "it is written again. Otherwise start over in another directory.",
    )
    path = storage.locate(layout.SPEC)
    return _spec_of(sealed_json.unseal(read_file(storage, layout.SPEC, step), path, step), path)


def _spec_of(fields: dict[str, Any], path: Path | str) -> CacheSpec:
    try:
        spec = CacheSpec.from_json(fields.get("spec"))
    except ValueError as error:
        raise UnsupportedFormatError(
            f"{path}: this program does not support its spec: {error}. Use the version of "
            "xlstm-distill that wrote it, or a newer one."
        ) from error
    if fields.get("cache_id") != spec.cache_id:
        raise CorruptFileError(
            f"{path}: cache_id is {fields.get('cache_id')}, but its spec has {spec.cache_id}. "
            "Restore the file from a copy of the cache."
        )
    return spec
