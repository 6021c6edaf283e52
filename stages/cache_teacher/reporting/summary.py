"""What came of a run of stage one, in figures.

In: the manifest and the last progress report. Out: values for JSON.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from cache_format.metadata.manifest import Manifest
from cache_format.metadata.receipt import ConversationCounts, ShardEntry
from cache_format.metadata.splits import SPLITS
from stages.cache_teacher.reporting.progress import CacheProgress


def summarise_run(manifest: Manifest, progress: CacheProgress) -> dict[str, Any]:
    """What the run made, how fast, and what the cache now holds.

    ``device_wait_share`` and ``mfu`` are null where they are not known; ``seconds`` count from the
    first unit on, without what it takes to load the teacher.
    """
    shards = manifest.shards
    num_tokens = manifest.num_tokens
    num_bytes = sum(shard.num_bytes for shard in shards)
    columns = dict.fromkeys(shards[0].statistics.column_bytes if shards else (), 0)
    for shard in shards:
        for name in columns:
            columns[name] += shard.statistics.column_bytes[name]
    seconds, made = progress.seconds, progress.tokens_cached_this_run
    return {
        "complete": manifest.complete,
        "missing_units": list(progress.missing_units),
        "run": {
            "tokens": made,
            "units": progress.units_made,
            "documents": progress.documents,
            "bytes": progress.bytes_written,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(made / seconds, 1) if made and seconds > 0 else None,
            "device_wait_share": _rounded(progress.device_wait_share),
            "mfu": _rounded(progress.mfu),
        },
        "cache": {
            "tokens": num_tokens,
            "validation_tokens": manifest.num_rows("validation") * manifest.spec.sequence_length,
            "units": len(shards),
            "documents": sum(shard.num_documents for shard in shards),
            "skipped_documents": sum(shard.num_skipped_documents for shard in shards),
            "scored_tokens": sum(shard.statistics.num_scored for shard in shards),
            **_conversation_figures(shards),
            **_corpus_figures(manifest),
            "bytes": num_bytes,
            "bytes_per_token": round(num_bytes / num_tokens, 3) if num_tokens else None,
            "column_bytes": columns,
        },
    }


def corpus_figures(manifest: Manifest) -> dict[str, dict[str, Any]] | None:
    """What there is of each of several corpora, by its name; None where there is one."""
    spec = manifest.spec
    if spec.corpora is None:
        return None
    total, asked = manifest.num_tokens, math.fsum(share.weight for share in spec.corpora)
    found = {}
    for share in spec.corpora:
        shards = [shard for shard in manifest.shards if shard.corpus == share.name]
        rows = {
            split: sum(len(manifest.rows_of(split, shard)) for shard in shards) for split in SPLITS
        }
        num_tokens = sum(shard.num_tokens for shard in shards)
        found[share.name] = {
            "asked_share": share.weight / asked,
            "share": num_tokens / total if total else 0.0,
            "rows": rows,
            "tokens": {split: number * spec.sequence_length for split, number in rows.items()},
            "scored_tokens": sum(shard.statistics.num_scored for shard in shards),
            "units": len(shards),
            "documents": sum(shard.num_documents for shard in shards),
            "bytes": sum(shard.num_bytes for shard in shards),
        }
    return found


def conversation_counts(shards: Iterable[ShardEntry]) -> ConversationCounts | None:
    """What became of all conversations; None where documents are plain text."""
    counts = [shard.conversations for shard in shards if shard.conversations is not None]
    return sum(counts, ConversationCounts()) if counts else None


def _corpus_figures(manifest: Manifest) -> dict[str, Any]:
    figures = corpus_figures(manifest)
    return {} if figures is None else {"corpora": figures}


def _conversation_figures(shards: Iterable[ShardEntry]) -> dict[str, Any]:
    counts = conversation_counts(shards)
    return {} if counts is None else {"conversations": asdict(counts)}


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)
