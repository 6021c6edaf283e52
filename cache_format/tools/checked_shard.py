"""A whole shard, byte by byte, for programs that copy or check it without decoding its rows.

In: the file's bytes piece by piece, its receipt and the spec. Out: the same pieces. A shard of
another cache has the size and SHA-256 of a receipt that came with it, but not this cache's schema.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from cache_format.errors import CorruptShardError
from cache_format.metadata import layout
from cache_format.metadata.receipt import Receipt
from cache_format.metadata.spec import CacheSpec
from cache_format.storage.base import Storage, checked_chunks

_MAX_SCHEMA_BYTES = 1 << 20  # what is held in memory; a schema takes about 2 kB


def checked_shard(storage: Storage, receipt: Receipt, spec: CacheSpec) -> Iterator[bytes]:
    """The shard of ``receipt`` piece by piece.

    After the last piece, raises CorruptFileError unless it had its size and SHA-256, and
    CorruptShardError unless its schema names the cache of ``spec`` and the receipt's unit.
    """
    entry = receipt.entry
    step = layout.unit_step(entry.unit, entry.file)
    chunks = checked_chunks(storage, entry.file, (entry.num_bytes, entry.sha256), step)
    return of_this_cache(chunks, receipt, spec, storage.locate(entry.file))


def of_this_cache(
    chunks: Iterable[bytes], receipt: Receipt, spec: CacheSpec, path: Path | str
) -> Iterator[bytes]:
    """``chunks``, all of the shard ``path``; raises CorruptShardError as ``checked_shard`` does."""
    from cache_format.shard import require_schema

    entry, segment = receipt.entry, receipt.segments[0]
    wanted = min(segment.offset + segment.length, _MAX_SCHEMA_BYTES)
    beginning = b""
    for chunk in chunks:
        beginning += chunk[: wanted - len(beginning)]
        yield chunk
    # Only now: of a damaged shard, the checksum says so first.
    try:
        require_schema(beginning[segment.offset :], entry.unit, spec)
    except ValueError as error:
        raise CorruptShardError(
            f"{path}: not this cache's shard of unit {entry.unit}: {error}.",
            layout.unit_step(entry.unit, entry.file),
        ) from error
