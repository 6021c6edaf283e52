"""What a cache's targets leave out of the teacher, as far as the cache tells.

In: a cache. Out: plain dictionaries, fit for JSON, by temperature. Of kinds with states it is what
rounding them lost on the first unit, as the spec has it; of kinds with kept logits the mass outside
of the kept ids, a mean over some rows. The teacher is not needed, nor PyTorch.

T positions, P of them scored, N kept ids of all together, n inverse temperatures.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache_format.codec.row import Row
from cache_format.metadata.spec_parts.targets import KL_TEMPERATURES, TargetSpec
from cache_format.metadata.splits import SPLITS
from cache_format.reader import Cache
from stages.train_student.data.temperatures import covers, lagrange_weights

_MOST_ROWS = 8
"""Of a split, each in another record batch."""

ByTemperature = dict[str, float]
"""By the temperature as people write it, such as ``1.5``."""


def self_kl(spec: TargetSpec) -> ByTemperature | None:
    """KL(teacher ‖ cache) in nats, of the states alone; None for kinds without."""
    if spec.hidden is None:
        return None
    return {
        f"{temperature:g}": kl
        for temperature, kl in zip(KL_TEMPERATURES, spec.hidden.self_kl, strict=True)
    }


def mass_outside(cache: Cache) -> ByTemperature | None:
    """The share of the teacher's mass on ids that are not kept, a mean over the scored positions of
    a few rows, at the temperatures that the cache holds.

    None for kinds that keep no logits, where no row is there, and for a cache at a URL, whose
    shards would be fetched. Raises CacheError where a row is damaged.
    """
    if cache.spec.targets.kept is None or not isinstance(cache.path, Path):
        return None
    rows = [
        cache.read_row(split, index, with_sketch=False)[1]
        for split in SPLITS
        for index in _spread(cache.num_rows(split))
    ]
    nodes = cache.spec.targets.inverse_temperatures
    found = {}
    for temperature in KL_TEMPERATURES:
        if not covers(nodes, temperature):
            continue
        masses = [_tail_mass(row, nodes, temperature) for row in rows]
        if any(len(mass_P) for mass_P in masses):
            found[f"{temperature:g}"] = float(np.concatenate(masses).mean())
    return found or None


def _spread(num_rows: int) -> list[int]:
    """Numbers of rows, evenly spread."""
    chosen = np.linspace(0, num_rows - 1, min(num_rows, _MOST_ROWS)).round().astype(int)
    return [int(index) for index in chosen]


def _tail_mass(row: Row, nodes: tuple[float, ...], temperature: float) -> NDArray[np.float64]:
    """The tail's share of the mass at the scored positions of a row."""
    kept, scored_T = row.kept, row.scored()
    position_N = np.repeat(np.arange(len(scored_T)), kept.num_ids)
    weights_N = np.exp(-kept.gaps.astype(np.float64) / temperature)
    kept_P = np.bincount(position_N, weights_N, len(scored_T))[scored_T]
    tail_Pn = kept.tail_log_mass[scored_T].astype(np.float64)
    # Where nothing is left out, each node is −∞, and 0 times it NaN.
    is_left_out_P = np.isfinite(tail_Pn).all(1)
    tail_P = np.full(len(tail_Pn), -np.inf)
    weights_n = np.array(lagrange_weights(nodes, 1 / temperature))
    tail_P[is_left_out_P] = tail_Pn[is_left_out_P] @ weights_n
    mass_P: NDArray[np.float64] = np.exp(tail_P - np.logaddexp(np.log(kept_P), tail_P))
    return mass_P
