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

from cache_format.codec.plain_columns import KEPT_COLUMNS, SAMPLE_COLUMNS
from cache_format.codec.quantizer import ceilings_of_levels, logprobs_of_levels
from cache_format.codec.row import PackedTokens, Row, refuse_repeated
from cache_format.codec.samples import KeptLogprobs, check_samples, decode_samples, encode_samples
from cache_format.codec.targets import kept_ids, top_k
from cache_format.codec.targets.kept_ids import Kept, named
from cache_format.codec.targets.kind import Cells, TargetSums
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.metadata.vocabulary_ranks import RankTable

ROW_FIELDS: tuple[str, ...] = ("draws",)
COLUMNS = (*kept_ids.COLUMNS, "drawn")
NO_SUMS = TargetSums(0, 0.0, 0)
PLAIN_COLUMNS = (*KEPT_COLUMNS, *SAMPLE_COLUMNS)
title = kept_ids.title


def encode(
    row: Row, scored: NDArray[np.bool_], spec: CacheSpec, ranks: RankTable
) -> dict[str, bytes]:
    """See ``TargetKind.encode``."""
    kept = kept_ids.from_logits(row, scored, spec.targets, ranks)
    table = logprobs_of_levels(spec.targets.num_levels)
    cells = kept_ids.encode(row, kept, table, spec, ranks)
    samples = named("draws", lambda: _encode_samples(row, kept, spec.targets, ranks))
    return cells | {"drawn": samples}


def decode(cells: Cells, tokens: PackedTokens, spec: CacheSpec, ranks: RankTable) -> Row:
    """See ``TargetKind.decode``."""
    num_samples = spec.targets.num_draws
    assert num_samples is not None, "the spec's rule"
    found = kept_ids.decode(cells, tokens, spec)
    logprobs = kept_ids.look_up(found, logprobs_of_levels(spec.targets.num_levels))
    row = kept_ids.to_row(found, logprobs, cells, spec, ranks)
    known = _kept_logprobs(found.entries.levels, found.num_kept, found.has_tail, spec.targets)
    samples = named("drawn", lambda: decode_samples(cells["drawn"], known, num_samples, ranks))
    return replace(row, draws=samples)


def sums(row: Row, scored: NDArray[np.bool_]) -> TargetSums:
    """See ``TargetKind.sums``."""
    assert row.draws is not None
    return kept_ids.sums(row, scored)._replace(num_drawn=len(row.draws.ids))


def figures(sums: TargetSums, num_scored: int) -> dict[str, float]:
    """See ``TargetKind.figures``."""
    assert sums.num_drawn is not None
    return kept_ids.figures(sums, num_scored) | {"mean_num_drawn": sums.num_drawn / num_scored}


def describe(spec: TargetSpec, figures: Mapping[str, float]) -> str:
    """See ``TargetKind.describe``."""
    assert spec.draw_inverse_temperature is not None
    return (
        f"{top_k.describe(spec, figures)}; {figures['mean_num_drawn']:.1f} others, from "
        f"{spec.num_draws} draws at temperature {1 / spec.draw_inverse_temperature:g}"
    )


def preview(row: Row, most: int) -> list[dict[str, Any]]:
    """See ``TargetKind.preview``."""
    assert row.draws is not None
    samples = row.draws
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


def _encode_samples(row: Row, kept: Kept, targets: TargetSpec, ranks: RankTable) -> bytes:
    """The samples of a row; raises ValueError where one breaks a rule."""
    assert row.draws is not None
    assert targets.num_draws is not None
    samples, num_kept = row.draws, row.num_kept.astype(np.int64)
    scored = kept.scored
    has_tail = scored & ~np.isneginf(row.tail_log_mass[:, -1])
    last_gaps = np.zeros(len(num_kept), np.float32)
    last_gaps[scored] = row.gaps[np.cumsum(num_kept)[scored] - 1]
    check_samples(samples, has_tail, last_gaps, targets.num_draws, len(ranks.ids_by_rank))
    position = np.repeat(np.arange(len(num_kept)), num_kept)
    position_of_sample = np.repeat(np.arange(len(num_kept)), samples.num_ids)
    refuse_repeated(
        np.concatenate([row.kept_ids, samples.ids]),
        np.concatenate([position, position_of_sample]),
        "is drawn twice, or drawn and kept",
    )
    known = _kept_logprobs(kept.entries.levels, row.num_kept, has_tail, targets)
    return encode_samples(samples, kept.log_z, known, targets.num_draws, ranks)


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
    largest[has_tail] = logprobs_of_levels(targets.num_levels)[first_levels]
    ceiling[has_tail] = ceilings_of_levels(targets.num_levels)[levels[ends - 1]]
    return KeptLogprobs(has_tail, largest, ceiling)
