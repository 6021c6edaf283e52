"""Caches with weights, as the command line takes them: ``--cache web=0.4 --cache math=0.6``.

A name may itself hold "=". What is a directory under the whole name is that directory, without a
weight; of anything else, only a number after the last "=" is a weight.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pipeline.options.cache_location import CacheLocation

_NUMBER = re.compile(r"[0-9]*\.?[0-9]+(e[+-]?[0-9]+)?|[0-9]+\.", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class WeightedCache:
    """A cache that was named."""

    place: Path | str
    weight: float | None
    """None where none was given."""


class WeightedCacheLocation(CacheLocation):
    """``CACHE`` or ``CACHE=WEIGHT``, as a ``WeightedCache``."""

    name = "cache[=weight]"

    def __init__(self) -> None:
        super().__init__(exists=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A ``WeightedCache``."""
        if isinstance(value, WeightedCache):
            return value
        name, equals, text = str(value).rpartition("=")
        if not equals or Path(str(value)).is_dir():
            return WeightedCache(place=super().convert(value, param, ctx), weight=None)
        if _NUMBER.fullmatch(text) is None:
            if Path(name).is_dir():
                self.fail(f"{text!r} is no weight: expected a number such as 0.4.", param, ctx)
            return WeightedCache(place=super().convert(value, param, ctx), weight=None)
        weight = float(text)
        if not 0 < weight < math.inf:
            self.fail(
                f"{value!r}: a weight must be above 0 and finite; leave out what has none.",
                param,
                ctx,
            )
        return WeightedCache(place=super().convert(name, param, ctx), weight=weight)


def weights_of(caches: Sequence[WeightedCache]) -> tuple[float, ...] | None:
    """The weights of all; None where none has one. Raises UsageError where only some have."""
    weights = [cache.weight for cache in caches if cache.weight is not None]
    if not weights:
        return None
    if len(weights) < len(caches):
        lacking = next(cache.place for cache in caches if cache.weight is None)
        raise click.UsageError(
            f"--cache {lacking} has no weight, but another has. Give each one (--cache "
            f"{lacking}=WEIGHT), or none: then rows are drawn in proportion to their number."
        )
    return tuple(weights)
