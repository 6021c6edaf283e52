"""What the context tells of which ids a teacher's largest logits are: bytes that a code could save.

In: a cache of kind `top_k`. Out: bytes per token of the set of kept ids, coded id by id with the
probability that ids of its class are kept. Probabilities are counted on the first half of the rows
and paid for on the second. Classes are made of the id's rank by frequency, and then of

- recent: at how many of the document's last four positions it was kept;
- same: whether it was kept where the current token last stood, in any document;
- input: whether it occurs in the document so far;
- near: whether it is among the 64 or 512 nearest to the current token, by the cosine of the rows of
  the teacher's head (in the cache).
"""

import sys
from collections.abc import Callable, Iterator
from itertools import accumulate, islice
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

import cache_format
from benchmarks.progress import Done, Progress, quiet
from benchmarks.quick import quick_option, show
from cache_format.codec.row import Row
from cache_format.reader import Cache

Ids = NDArray[np.integer]
_RANKS, _RECENT, _NEAR = 48, 4, (64, 512)
_BELOW_ONE_COUNT = 0.02
CONTEXTS: dict[str, tuple[str, ...]] = {
    "rank": (),
    **{name: (name,) for name in ("recent", "same", "input", "near")},
    "all": ("recent", "same", "input", "near"),
}
"""What classes are made of beside the rank, by what a row of the table is called."""
_SIZES = {"recent": _RECENT + 1, "same": 3, "input": 2, "near": len(_NEAR) + 1}


class Position(NamedTuple):
    """One with targets."""

    kept: Ids
    features: dict[str, Ids]
    """By name, [V]."""


@click.command("kept-ids", help=__doc__)
@quick_option(rows=4)
@click.argument("cache", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--rows",
    type=click.IntRange(min=2),
    help="Of the cache: as many of the first of its training rows; all if not given.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def kept_ids(cache: Path, rows: int | None, as_json: bool) -> None:
    opened = cache_format.open(cache)
    num_rows = min(rows or sys.maxsize, opened.num_rows("train"))
    with Progress("kept-ids", num_rows, unit=" rows") as progress:
        found = measured(opened, num_rows, progress.done)
    show(found, as_json, _table)


def _table(found: dict[str, float]) -> str:
    return "\n".join(f"{name:8}{num_bytes:8.2f}" for name, num_bytes in found.items())


def measured(cache: Cache, num_rows: int | None = None, done: Done = quiet) -> dict[str, float]:
    """Bytes per token in the first rows, by the name of what the code knows."""
    all_rows = cache.iter_rows("train", with_sketch=False)
    rows = [row for _, row in islice(all_rows, num_rows)]
    vocab_size = cache.spec.teacher.vocab_size
    rank_V = np.minimum(3 * np.log2(cache.ranks.ranks_by_id + 1), _RANKS - 1).astype(np.int64)
    context = _Context(vocab_size, _neighbours(cache))
    num_classes = {
        name: int(np.prod([_RANKS, *(_SIZES[part] for part in parts)]))
        for name, parts in CONTEXTS.items()
    }
    halves = [
        {name: np.zeros((2, number), np.int64) for name, number in num_classes.items()}
        for _ in range(2)
    ]
    num_paid = 0
    for index, row in enumerate(rows):
        is_paid = index >= len(rows) // 2
        for position in context.positions(row):
            num_paid += is_paid
            for name, parts in CONTEXTS.items():
                class_V = rank_V
                for part in parts:
                    class_V = class_V * _SIZES[part] + position.features[part]
                kept = np.bincount(class_V[position.kept], minlength=num_classes[name])
                seen = np.bincount(class_V, minlength=num_classes[name])
                halves[is_paid][name] += np.stack([seen - kept, kept])
        done(f"row {index}")
    return {
        name: round(_bits(halves[0][name], halves[1][name]) / 8 / max(1, num_paid), 2)
        for name in CONTEXTS
    }


def _bits(counted: Ids, paid: Ids) -> float:
    share = (counted + _BELOW_ONE_COUNT) / (counted + _BELOW_ONE_COUNT).sum(0)
    return float(-(paid * np.log2(share)).sum())


class _Context:
    """What was seen so far."""

    def __init__(self, vocab_size: int, neighbours: Callable[[int], Ids]) -> None:
        self._vocab_size, self._neighbours = vocab_size, neighbours
        self._kept_after: dict[int, Ids] = {}

    def positions(self, row: Row) -> Iterator[Position]:
        kept, recent = row.kept, list[Ids]()
        begins = {0, *row.document_starts.tolist()}
        input_V = np.zeros(self._vocab_size, np.int64)
        ends = list(accumulate(kept.num_ids.tolist(), initial=0))
        for t, token in enumerate(row.token_ids[:-1].tolist()):
            if t in begins:
                recent, input_V = [], np.zeros(self._vocab_size, np.int64)
            input_V[token] = 1
            ids = kept.ids[ends[t] : ends[t + 1]]
            if not len(ids):
                continue
            yield Position(ids, {**self._features(token, recent), "input": input_V})
            recent = [*recent[1 - _RECENT :], ids]
            self._kept_after[token] = ids

    def _features(self, token: int, recent: list[Ids]) -> dict[str, Ids]:
        recent_V, same_V, near_V = np.zeros((3, self._vocab_size), np.int64)
        for ids in recent:
            recent_V[ids] += 1
        if token in self._kept_after:
            same_V += 1
            same_V[self._kept_after[token]] = 2
        nearest = self._neighbours(token)
        for number in sorted(_NEAR, reverse=True):
            near_V[nearest[:number]] += 1
        return {"recent": recent_V, "same": same_V, "near": near_V}


def _neighbours(cache: Cache) -> Callable[[int], Ids]:
    """The ids nearest to an id, the nearest first."""
    from stages.train_student.data.teacher_files import teacher_head

    head_VD = teacher_head(cache)[: cache.spec.teacher.vocab_size].float().numpy()
    head_VD = head_VD - head_VD.mean(0)
    head_VD /= np.linalg.norm(head_VD, axis=1, keepdims=True) + 1e-9
    found: dict[int, Ids] = {}

    def nearest(token: int) -> Ids:
        if token not in found:
            cosine_V = head_VD @ head_VD[token]
            most = min(max(_NEAR), len(cosine_V) - 1)
            top = np.argpartition(-cosine_V, most)[:most]
            found[token] = top[np.argsort(-cosine_V[top])]
        return found[token]

    return nearest
