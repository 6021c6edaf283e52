"""A row's arrays as lists of numbers, one a position, for programs that know nothing of our codec.

In: a ``Row``. Out: Arrow arrays of T lists or numbers; positions that are not scored have empty
lists. Shapes: T positions, N kept entries and M samples of all positions together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache_format.codec.row import Row


@dataclass(frozen=True)
class PlainColumn:
    """One list of a row: [T] or [T + 1] of ``kind``."""

    name: str
    kind: pa.DataType
    values: Callable[[Row], pa.Array]


def _by_position(lengths_T: NDArray[np.uint16], entries: NDArray[np.generic]) -> pa.Array:
    """What all positions have together, cut into one list a position."""
    ends = np.cumsum(lengths_T, dtype=np.int32)
    return pa.ListArray.from_arrays(np.concatenate([[0], ends]).astype(np.int32), entries)


def _logprobs(row: Row) -> pa.Array:
    """−gap − log Z of each kept id."""
    log_z_N = np.repeat(_log_z(row), row.num_kept)
    return _by_position(row.num_kept, (-row.gaps - log_z_N).astype(np.float32))


def _log_z(row: Row) -> NDArray[np.float64]:
    """log Z − z_max, [T], with Z over the kept ids and the tail at the last node, mostly T = 1."""
    kept_T = row.num_kept.astype(np.int64)
    position_N = np.repeat(np.arange(len(kept_T)), kept_T)
    mass_N = np.exp(-row.gaps.astype(np.float64))
    tail_T = np.exp(row.tail_log_mass[:, -1].astype(np.float64))
    log_z: NDArray[np.float64] = np.log(np.bincount(position_N, mass_N, len(kept_T)) + tail_T)
    return log_z


def _samples(row: Row, name: Literal["ids", "counts"]) -> pa.Array:
    assert row.draws is not None, "the spec says that there are some"
    return _by_position(row.draws.num_ids, getattr(row.draws, name).astype(np.int32))


def _sample_logprobs(row: Row) -> pa.Array:
    assert row.draws is not None, "the spec says that there are some"
    log_z_M = np.repeat(_log_z(row), row.draws.num_ids)
    return _by_position(row.draws.num_ids, (-row.draws.gaps - log_z_M).astype(np.float32))


def _counts(row: Row) -> pa.Array:
    assert row.counts is not None, "the spec says that there are some"
    return _by_position(row.num_kept, row.counts.astype(np.int32))


def _tail_log_mass(row: Row) -> pa.Array:
    scored = row.scored()
    num_nodes = row.tail_log_mass.shape[1]
    ends = np.cumsum(np.where(scored, num_nodes, 0), dtype=np.int32)
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, row.tail_log_mass[scored].reshape(-1))


def _next_logprob(row: Row) -> pa.Array:
    return pa.array(row.next_logprob, pa.float32(), mask=~row.scored())


KEPT_COLUMNS: tuple[PlainColumn, ...] = (
    PlainColumn("num_kept", pa.int32(), lambda row: pa.array(row.num_kept, pa.int32())),
    PlainColumn(
        "kept_ids", pa.list_(pa.int32()), lambda row: _by_position(row.num_kept, row.kept_ids)
    ),
    PlainColumn("logprobs", pa.list_(pa.float32()), _logprobs),
    PlainColumn("tail_log_mass", pa.list_(pa.float32()), _tail_log_mass),
    PlainColumn("next_logprob", pa.float32(), _next_logprob),
)
"""Of every kind of target that keeps ids."""

COUNTS = PlainColumn("counts", pa.list_(pa.int32()), _counts)
"""How often each kept id was drawn."""

SAMPLE_COLUMNS: tuple[PlainColumn, ...] = (
    PlainColumn("drawn_ids", pa.list_(pa.int32()), lambda row: _samples(row, "ids")),
    PlainColumn("draw_counts", pa.list_(pa.int32()), lambda row: _samples(row, "counts")),
    PlainColumn("drawn_logprobs", pa.list_(pa.float32()), _sample_logprobs),
)
"""Of ids drawn from those that are not kept."""
