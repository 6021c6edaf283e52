"""What share of a cache is validation, before it is made and after.

In: a manifest, or what units are expected to hold. Out: the share, and what to change where much
more than one in n is never trained on. Whole units are divided, of which the first is validation:
a cache of three of them gives away a third.
"""

import math
from dataclasses import dataclass

from cache_format.metadata.manifest import Manifest
from cache_format.metadata.spec import CacheSpec

_TOLERATED = 0.05
"""So much more than 1/n may be validation before anything is said of it."""


@dataclass(frozen=True, kw_only=True)
class SplitShares:
    """How many rows each split has."""

    spec: CacheSpec
    num_rows: int
    """Of both splits."""
    num_validation_rows: int

    @property
    def validation_share(self) -> float:
        """Share of the rows that is validation; 0 where there are no rows."""
        return self.num_validation_rows / max(1, self.num_rows)

    @property
    def advice(self) -> str:
        """What to change where too much is validation; empty where nothing is to be said."""
        every = self.spec.validation_every
        if self.validation_share <= 1 / every + _TOLERATED:
            return ""
        if self.num_validation_rows == self.num_rows:
            problem = "That leaves nothing to train on"
        else:
            problem = f"That is much more than 1 in {every} (cache_teacher.validation_every)"
        if self.spec.validation_split == "rows":
            remedy = "a shorter cache_teacher.sequence_length"
        else:
            remedy = 'cache_teacher.validation_split = "rows" or fewer documents_per_unit'
        return f"{problem}. More tokens lower the share; in a new cache, so does {remedy}."


def shares_of(manifest: Manifest) -> SplitShares:
    """The shares of a cache as it is."""
    num_validation_rows = manifest.num_rows("validation")
    return SplitShares(
        spec=manifest.spec,
        num_rows=num_validation_rows + manifest.num_rows("train"),
        num_validation_rows=num_validation_rows,
    )


def expected_shares(spec: CacheSpec, num_units: int, tokens_per_unit: float) -> SplitShares:
    """The shares of so many units, all of one size."""
    rows_per_unit = max(1, round(tokens_per_unit / spec.sequence_length))
    num_rows = num_units * rows_per_unit
    if spec.validation_split == "rows":
        num_validation_rows = math.ceil(num_rows / spec.validation_every)
    else:
        of_each = spec.unit_order.counts(num_units)
        num_validation_rows = rows_per_unit * sum(
            math.ceil(units / spec.validation_every) for units in of_each
        )
    return SplitShares(spec=spec, num_rows=num_rows, num_validation_rows=num_validation_rows)


def expectation(spec: CacheSpec, num_units: int, tokens_per_unit: float) -> str:
    """What is said when the first unit was read: how many there will be, and the shares."""
    shares = expected_shares(spec, num_units, tokens_per_unit)
    units = "1 unit" if num_units == 1 else f"{num_units:,} units"
    sentence = (
        f"about {units} of {round(tokens_per_unit):,} tokens; validation is "
        f"{shares.validation_share:.1%} of the rows"
    )
    return f"{sentence}. {shares.advice}" if shares.advice else sentence
