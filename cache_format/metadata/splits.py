"""Which rows of a unit are for training and which for validation.

A pure function of the spec, the unit's number and how many rows it has: so the splits do not depend
on which units there are, and a cache that is extended keeps those of the rows that it held.
"""

from typing import get_args

from cache_format.metadata.spec import CacheSpec, Split

SPLITS: tuple[Split, ...] = get_args(Split)


def rows_of_split(spec: CacheSpec, split: Split, unit: int, num_rows: int) -> range:
    """The rows of ``unit``, which has ``num_rows``, that belong to ``split``; there may be none."""
    border = num_rows - _num_validation_rows(spec, unit, num_rows)
    return range(border) if split == "train" else range(border, num_rows)


def _num_validation_rows(spec: CacheSpec, unit: int, num_rows: int) -> int:
    if spec.split_of(unit) is not None:
        return num_rows if spec.split_of(unit) == "validation" else 0
    # ⌈(u + 1)R/n⌉ − ⌈uR/n⌉: at least one row of unit 0, and R of every n units of R rows. Units are
    # counted corpus by corpus, so that each of several has its share.
    number = spec.place_of(unit).number
    before, after = (-(-end * num_rows // spec.validation_every) for end in (number, number + 1))
    return after - before
