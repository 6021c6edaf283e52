"""Open a cache: check its manifest, or make one of what an unfinished cache holds."""

from pathlib import Path

from cache_format.errors import Action, ForeignDirectoryError, IncompleteCacheError, NextStep
from cache_format.metadata import layout
from cache_format.metadata.manifest import Manifest, fold, read_manifest, read_spec
from cache_format.metadata.receipt import read_receipt, read_teacher_receipt
from cache_format.metadata.unit_ranges import looks_like_part, ranges_text, unit_ranges
from cache_format.reader import Cache
from cache_format.storage.base import LocalSpace, Storage, on_each
from cache_format.storage.open import storage_at


def open_cache(
    path: str | Path, *, allow_incomplete: bool = False, space: LocalSpace | None = None
) -> Cache:
    """Open the cache at ``path``, a directory or a URL, and check its manifest.

    With ``allow_incomplete``, a cache that is still being written can be opened too, with the
    shards that are finished so far. Raises IncompleteCacheError otherwise, ForeignDirectoryError if
    there is no cache, CorruptFileError if the manifest is damaged.
    """
    storage = storage_at(path)
    root = storage.root
    if storage.size(layout.MANIFEST) is not None:
        manifest = read_manifest(storage)
    elif storage.size(layout.SPEC) is not None:
        manifest = _manifest_of_unfinished(storage)
    else:
        raise ForeignDirectoryError(
            f"{root}: not a cache: expected {layout.MANIFEST} in it.",
            NextStep("Give a directory that stage one wrote.", Action.NAME_CACHE),
        )
    if not manifest.complete and not allow_incomplete:
        units = unit_ranges(manifest)
        if looks_like_part(units):
            raise IncompleteCacheError(
                f"{root}: looks like a part of a cache: it holds units {ranges_text(units)}; "
                "others are missing.",
                NextStep(
                    "If it is one of several parts, merge them. If workers share it and some did "
                    "not finish, run stage one without workers to make their units.",
                    Action.FINISH_PARTS,
                ),
            )
        raise IncompleteCacheError(
            f"{root}: the cache is still being written, or its writing was interrupted: "
            f"{len(manifest.shards)} shards are finished.",
            layout.make_again("Wait for it, or", "it resumes from there."),
        )
    return Cache(storage, manifest, space or LocalSpace())


def _manifest_of_unfinished(storage: Storage) -> Manifest:
    """What the manifest would be if the writer stopped now."""
    spec = read_spec(storage)
    teacher = None
    if storage.size(layout.TEACHER_RECEIPT) is not None:
        teacher = read_teacher_receipt(storage, spec, None)
    units = layout.receipt_units(storage)
    receipts = on_each(storage, lambda unit: read_receipt(storage, unit, spec, None), units)
    entries = [receipt.entry for receipt in receipts]
    return fold(spec, entries, teacher, num_tokens_requested=0, complete=False)
