"""A row's arrays as lists of numbers, one a position, for programs that know nothing of our codec.

In: a ``Row``. Out: NumPy arrays that ``tools/parquet_export.py`` makes Arrow columns of; whoever
only reads a cache needs none of these. Shapes: T positions, N kept entries and M samples of all
positions together, E numbers of a column.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache_format.codec.row import Row


class PlainValues(NamedTuple):
    """What a row has in a column."""

    numbers: NDArray[np.generic]
    """[E], of all positions together; [T] where a position has one number."""
    lengths: NDArray[np.integer] | None = None
    """[T], how many numbers each position has; None where each has one."""
    is_null: NDArray[np.bool_] | None = None
    """[T], where the number means nothing; None where all mean something."""


@dataclass(frozen=True)
class PlainColumn:
    """One column: a number of ``dtype`` for each position, or a list of them."""

    name: str
    dtype: Literal["int32", "float32"]
    is_list: bool
    values: Callable[[Row], PlainValues]


def _logprobs(row: Row) -> PlainValues:
    """−gap − log Z of each kept id."""
    log_z_N = np.repeat(_log_z(row), row.kept.num_ids)
    return PlainValues((-row.kept.gaps - log_z_N).astype(np.float32), row.kept.num_ids)


def _log_z(row: Row) -> NDArray[np.float64]:
    """log Z − z_max, [T], with Z over the kept ids and the tail at the last node, mostly T = 1."""
    kept_T = row.kept.num_ids.astype(np.int64)
    position_N = np.repeat(np.arange(len(kept_T)), kept_T)
    mass_N = np.exp(-row.kept.gaps.astype(np.float64))
    tail_T = np.exp(row.kept.tail_log_mass[:, -1].astype(np.float64))
    log_z: NDArray[np.float64] = np.log(np.bincount(position_N, mass_N, len(kept_T)) + tail_T)
    return log_z


def _samples(row: Row, name: Literal["ids", "counts"]) -> PlainValues:
    assert row.kept.draws is not None, "the spec says that there are some"
    return PlainValues(getattr(row.kept.draws, name), row.kept.draws.num_ids)


def _sample_logprobs(row: Row) -> PlainValues:
    assert row.kept.draws is not None, "the spec says that there are some"
    log_z_M = np.repeat(_log_z(row), row.kept.draws.num_ids)
    return PlainValues((-row.kept.draws.gaps - log_z_M).astype(np.float32), row.kept.draws.num_ids)


def _counts(row: Row) -> PlainValues:
    assert row.kept.counts is not None, "the spec says that there are some"
    return PlainValues(row.kept.counts, row.kept.num_ids)


def _tail_log_mass(row: Row) -> PlainValues:
    scored, num_nodes = row.scored(), row.kept.tail_log_mass.shape[1]
    return PlainValues(row.kept.tail_log_mass[scored].reshape(-1), np.where(scored, num_nodes, 0))


KEPT_COLUMNS: tuple[PlainColumn, ...] = (
    PlainColumn("num_kept", "int32", False, lambda row: PlainValues(row.kept.num_ids)),
    PlainColumn("kept_ids", "int32", True, lambda row: PlainValues(row.kept.ids, row.kept.num_ids)),
    PlainColumn("logprobs", "float32", True, _logprobs),
    PlainColumn(
        "next_logprob",
        "float32",
        False,
        lambda row: PlainValues(row.kept.next_logprob, is_null=~row.scored()),
    ),
)
"""Of every kind of target that keeps ids."""

TAIL_LOG_MASS = PlainColumn("tail_log_mass", "float32", True, _tail_log_mass)
"""Where not all ids are drawn."""

COUNTS = PlainColumn("counts", "int32", True, _counts)
"""How often each kept id was drawn."""

SAMPLE_COLUMNS: tuple[PlainColumn, ...] = (
    PlainColumn("drawn_ids", "int32", True, lambda row: _samples(row, "ids")),
    PlainColumn("draw_counts", "int32", True, lambda row: _samples(row, "counts")),
    PlainColumn("drawn_logprobs", "float32", True, _sample_logprobs),
)
"""Of ids drawn from those that are not kept."""
