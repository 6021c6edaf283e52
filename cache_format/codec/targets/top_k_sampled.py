"""The k largest logits of a position as ``top_k`` stores them, and ids drawn from the others.

The column ``drawn`` holds these (see ``samples.py``). Their log-probabilities are stored relative
to what the kept entries tell a reader, so both ways go through the kept entries' levels.

Shapes: T positions, N kept entries of all positions together.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_format.codec.columns import named
from cache_format.codec.plain_columns import SAMPLE_COLUMNS
from cache_format.codec.quantizer import ceilings_of_levels, logprobs_of_levels
from cache_format.codec.row import (
    KeptIds,
    PackedTokens,
    Row,
    check_kept_shapes,
    refuse_repeated,
)
from cache_format.codec.samples import KeptLogprobs, check_samples, decode_samples, encode_samples
from cache_format.codec.targets import kept_ids, top_k
from cache_format.codec.targets.kept_ids import Kept
from cache_format.codec.targets.kind import Cells, TargetSums
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.tables.shared_files import SharedFiles
from cache_format.tables.vocabulary_ranks import RankTable

COLUMNS: tuple[str, ...] = (*top_k.COLUMNS, "drawn")
PLAIN_COLUMNS = (*top_k.PLAIN_COLUMNS, *SAMPLE_COLUMNS)
title = top_k.title


def encode(
    row: Row, scored: NDArray[np.bool_], spec: CacheSpec, shared: SharedFiles
) -> dict[str, bytes]:
    """See ``TargetKind.encode``."""
    check_kept_shapes(row.kept, spec, has_counts=False, has_draws=True)
    cells, kept = top_k.encode_kept(row, scored, spec, shared)
    samples = named("draws", lambda: _encode_samples(row.kept, kept, spec.targets, shared.ranks))
    return cells | {"drawn": samples}


def decode(cells: Cells, tokens: PackedTokens, spec: CacheSpec, shared: SharedFiles) -> Row:
    """See ``TargetKind.decode``."""
    targets, ranks = spec.targets, shared.ranks
    found = kept_ids.decode(cells, tokens, targets.logits.top_k, spec)
    logprobs = kept_ids.look_up(found, logprobs_of_levels(targets.logits.num_levels))
    tail = kept_ids.decode_tail(cells, spec)
    kept = kept_ids.to_kept_ids(found, logprobs, tail, cells, spec, ranks)
    has_tail = found.scored & ~np.isneginf(tail[:, -1])
    known = _kept_logprobs(found.entries.levels, found.num_ids, has_tail, targets)
    num_draws = targets.sampling.num_draws
    draws = named("drawn", lambda: decode_samples(cells["drawn"], known, num_draws, ranks))
    return kept_ids.to_row(tokens, replace(kept, draws=draws))


def bounds_of_sums(spec: TargetSpec) -> dict[str, tuple[float, float]]:
    """See ``TargetKind.bounds_of_sums``."""
    return {**top_k.bounds_of_sums(spec), "num_drawn": (0, spec.sampling.num_draws)}


def sums(row: Row, scored: NDArray[np.bool_]) -> TargetSums:
    """See ``TargetKind.sums``."""
    assert row.kept.draws is not None
    return {**kept_ids.sums(row, scored), "num_drawn": float(len(row.kept.draws.ids))}


def figures(sums: TargetSums, num_scored: int) -> dict[str, float]:
    """See ``TargetKind.figures``."""
    return kept_ids.figures(sums, num_scored) | {"mean_num_drawn": sums["num_drawn"] / num_scored}


def describe(spec: TargetSpec, figures: Mapping[str, float]) -> str:
    """See ``TargetKind.describe``."""
    return (
        f"{top_k.describe(spec, figures)}; {figures['mean_num_drawn']:.1f} others, from "
        f"{spec.sampling.num_draws} draws at temperature {1 / spec.sampling.inverse_temperature:g}"
    )


def preview(row: Row, most: int) -> list[dict[str, Any]]:
    """See ``TargetKind.preview``."""
    assert row.kept.draws is not None
    samples = row.kept.draws
    pairs = list(zip(samples.ids.tolist(), samples.counts.tolist(), strict=True))
    ends = np.cumsum(samples.num_ids, dtype=np.int64).tolist()
    numbers = zip(kept_ids.preview(row, most), ends, samples.num_ids.tolist(), strict=True)
    return [
        position
        | {
            "num_drawn": num_ids,
            "drawn": [
                {"id": token_id, "count": count}
                for token_id, count in pairs[end - num_ids : end][:most]
            ],
        }
        for position, end, num_ids in numbers
    ]


def _encode_samples(ids: KeptIds, kept: Kept, targets: TargetSpec, ranks: RankTable) -> bytes:
    """The samples of a row; raises ValueError where one breaks a rule."""
    assert ids.draws is not None
    samples, num_kept = ids.draws, ids.num_ids.astype(np.int64)
    num_draws = targets.sampling.num_draws
    scored = kept.scored
    has_tail = scored & ~np.isneginf(ids.tail_log_mass[:, -1])
    last_gaps = np.zeros(len(num_kept), np.float32)
    last_gaps[scored] = ids.gaps[np.cumsum(num_kept)[scored] - 1]
    check_samples(samples, has_tail, last_gaps, num_draws, len(ranks.ids_by_rank))
    position = np.repeat(np.arange(len(num_kept)), num_kept)
    position_of_sample = np.repeat(np.arange(len(num_kept)), samples.num_ids)
    refuse_repeated(
        np.concatenate([ids.ids, samples.ids]),
        np.concatenate([position, position_of_sample]),
        "is drawn twice, or drawn and kept",
    )
    known = _kept_logprobs(kept.entries.levels, ids.num_ids, has_tail, targets)
    return encode_samples(samples, kept.log_z, known, num_draws, ranks)


def _kept_logprobs(
    levels: NDArray[np.int64],
    num_kept: NDArray[np.uint16],
    has_tail: NDArray[np.bool_],
    targets: TargetSpec,
) -> KeptLogprobs:
    """What the kept entries, in the order in which they are stored, tell of the samples."""
    kept = num_kept.astype(np.int64)
    largest, ceiling = np.zeros(len(kept)), np.zeros(len(kept))
    ends = np.cumsum(kept)[has_tail]
    first_levels = levels[ends - kept[has_tail]]
    largest[has_tail] = logprobs_of_levels(targets.logits.num_levels)[first_levels]
    ceiling[has_tail] = ceilings_of_levels(targets.logits.num_levels)[levels[ends - 1]]
    return KeptLogprobs(has_tail, largest, ceiling)
