"""What a run of stage one would do: everything resolved and checked, no weights loaded.

In: the settings, and the place of a cache, new or begun. Out: a ``CachePlan``. Nothing is written;
files from the Hub are fetched into its own cache, as the run itself would.
"""

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NoReturn

from cache_format.metadata import layout
from cache_format.metadata.receipt import ShardEntry, read_receipt
from cache_format.metadata.spec import CacheSpec
from cache_format.storage.base import on_each
from cache_format.storage.open import storage_at
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.corpus.corpora import Corpora, CorpusUnits, open_corpora
from stages.cache_teacher.setup.identity import identify
from stages.cache_teacher.setup.teacher_dtype import with_teacher_dtype
from stages.cache_teacher.teacher.teacher_files import TeacherSource, resolve_teacher
from stages.compute.device import choose_device
from stages.model_files.weight_files import weight_files


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """What would be cached."""

    spec: CacheSpec
    is_identity_known: bool
    """Whether ``spec.cache_id`` is final: principal components of a new cache need the teacher."""
    teacher_directory: Path
    num_parameters: int
    """Of the teacher's weight files."""
    device: str
    num_units: int | None
    """Units of the corpora until the first has ended; None for any on the Hub, whose files are
    opened as they are needed."""
    ends_first: tuple[str, int] | None
    """Which of several corpora ends first, and how many units it has; None where not known."""
    num_tokens: int
    """The budget."""
    held: tuple[ShardEntry, ...]
    """What the cache holds already."""
    notes: tuple[str, ...]
    """What the run would say of the device before it begins."""

    @property
    def num_tokens_held(self) -> int:
        """Tokens in finished shards."""
        return sum(entry.num_tokens for entry in self.held)

    @property
    def num_tokens_left(self) -> int:
        """Tokens that would be cached, if the corpus holds so many."""
        return max(0, self.num_tokens - self.num_tokens_held)

    @property
    def bytes_per_token(self) -> float | None:
        """Of what is held; None where that is nothing."""
        num_bytes = sum(entry.num_bytes for entry in self.held)
        return num_bytes / self.num_tokens_held if self.num_tokens_held else None


def plan_cache(config: CacheTeacherConfig, out: Path | str) -> CachePlan:
    """What ``cache_teacher`` would do with the same arguments, or the error that it would raise."""
    device = choose_device(config.device)
    notes: list[str] = []
    config = with_teacher_dtype(config, out, device, notes.append)
    source = resolve_teacher(config)
    with open_corpora(config) as corpora:
        spec, is_known = _identity(config, source, corpora, out)
        is_local = not any(corpus.revision for corpus in spec.each_corpus)
        units = corpora.in_order(spec)
        num_units = _num_units(units) if is_local else None
        ended = None if num_units is None else units.ended_before(num_units)
        return CachePlan(
            spec=spec,
            is_identity_known=is_known,
            teacher_directory=source.directory,
            num_parameters=_num_parameters(source.directory),
            device=str(device),
            num_units=num_units,
            ends_first=None if ended is None or ended[0] is None else (ended[0], ended[1]),
            num_tokens=config.num_tokens,
            held=_held(spec, out),
            notes=tuple(notes),
        )


class _NotFittedError(Exception):
    def __init__(self, spec: CacheSpec) -> None:
        self.spec = spec


class _NoFit:
    """Raises _NotFittedError where something would be fitted."""

    def projection(self, spec: CacheSpec) -> NoReturn:
        raise _NotFittedError(spec)

    def transform(self, spec: CacheSpec) -> NoReturn:
        raise _NotFittedError(spec)

    def moment(self, spec: CacheSpec) -> NoReturn:
        raise _NotFittedError(spec)


def _identity(
    config: CacheTeacherConfig, source: TeacherSource, corpora: Corpora, out: Path | str
) -> tuple[CacheSpec, bool]:
    """The spec, and whether all of it is known without the teacher's weights."""
    try:
        return identify(config, source, corpora, out, _NoFit()).spec, True
    except _NotFittedError as error:
        return error.spec, False


def _held(spec: CacheSpec, out: Path | str) -> tuple[ShardEntry, ...]:
    storage = storage_at(out)
    receipts = on_each(
        storage,
        lambda unit: read_receipt(storage, unit, spec, None),
        layout.receipt_units(storage),
    )
    return tuple(receipt.entry for receipt in receipts)


def _num_units(corpus: CorpusUnits) -> int:
    """The first unit that there is not, by bisection."""
    end = 1
    while corpus.has_unit(end):
        end *= 2
    begin = end // 2
    while begin < end:
        middle = (begin + end) // 2
        begin, end = (middle + 1, end) if corpus.has_unit(middle) else (begin, middle)
    return end


def _num_parameters(directory: Path) -> int:
    """From the headers of the weight files (a length of 8 bytes, then JSON)."""
    num_parameters = 0
    for name in weight_files(directory):
        with (directory / name).open("rb") as file:
            (num_bytes,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(num_bytes))
        num_parameters += sum(
            prod(tensor["shape"]) for key, tensor in header.items() if key != "__metadata__"
        )
    return num_parameters
