"""The teacher and the text of a recipe, as far as a comparison of targets needs them.

In: the settings of stage one. Out: a loaded teacher, and rows of the beginning of the corpus: some
that transforms are fitted to, some that are measured. Nothing is left on disk.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.comparison.teacher_rows import TeacherRows, halves
from stages.cache_teacher.config import ALL_UNITS, CacheTeacherConfig
from stages.cache_teacher.corpus.corpora import open_corpora
from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.corpus.unit_reader import UnitReader
from stages.cache_teacher.engine.filling import nothing_made
from stages.cache_teacher.reporting.progress import CacheProgress, Progress
from stages.cache_teacher.setup.identity import make_spec, ranks_of, with_unit_shares
from stages.cache_teacher.setup.teacher_dtype import with_teacher_dtype
from stages.cache_teacher.teacher.lazy_teacher import LazyTeacher
from stages.cache_teacher.teacher.teacher_files import resolve_teacher
from stages.compute.device import choose_device

_FIT_POSITIONS = 4096
_MEASURED_POSITIONS = 2048
_LOGITS = 1 << 25
"""That are there for the positions whose whole distributions are compared."""
_MOST_POSITIONS = 256
_FEWEST_POSITIONS = 64


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What is measured."""

    config: CacheTeacherConfig
    """The recipe's, with the precision that the teacher has."""
    source: TeacherRows
    measured: PackedUnit
    num_positions: int
    """Whose whole distributions are compared."""


def make_probe(config: CacheTeacherConfig, report: Callable[[CacheProgress], None]) -> Probe:
    """Load the teacher and read the beginning of the corpus.

    Raises ValueError where either is not there or will not do, or the corpus is too short.
    """
    progress = Progress(config.num_tokens, ALL_UNITS, report)
    progress.show("resolving")
    device = choose_device(config.device)
    with tempfile.TemporaryDirectory(prefix="xlstm-distill-") as directory:
        config = with_teacher_dtype(config, Path(directory) / "cache", device, progress.say)
    teacher_files = resolve_teacher(config)
    vocab_size, width = teacher_files.spec.vocab_size, teacher_files.spec.hidden_size
    with open_corpora(config) as corpora:
        ranks = ranks_of(corpora, teacher_files)
        spec = make_spec(config, teacher_files.spec, corpora.described(), ranks.sha256)
        spec = with_unit_shares(spec, corpora, teacher_files)
        reader = UnitReader(corpora, teacher_files, spec)
        num_fit = max(_FIT_POSITIONS, 2 * width)
        fit_rows, measured = _rows(config, reader, num_fit, _MEASURED_POSITIONS)
        described = spec.corpus or spec.corpora
        assert described is not None, "there is one corpus, or there are several"
    num_scored = int(fit_rows.scored_RT().sum())
    if num_scored < width or not len(measured.token_ids_RT):
        raise ValueError(
            f"{config.corpus_title}: too short to compare targets: half of its rows hold "
            f"{num_scored:,} positions, and the transform of hidden states needs at least {width}, "
            "as many as the teacher is wide. Give a longer corpus."
        )
    teacher = LazyTeacher(teacher_files, device, progress).load()
    return Probe(
        config=config,
        source=TeacherRows(teacher, fit_rows, ranks, described),
        measured=measured,
        num_positions=min(_MOST_POSITIONS, max(_FEWEST_POSITIONS, _LOGITS // vocab_size)),
    )


def _rows(
    config: CacheTeacherConfig, reader: UnitReader, num_fit: int, num_measured: int
) -> tuple[PackedUnit, PackedUnit]:
    """The first rows with ``num_fit`` positions, and the next with ``num_measured``; the halves of
    a corpus that has fewer."""
    length = config.sequence_length
    rows_of_fit, rows_measured = -(-num_fit // length), -(-num_measured // length)
    packed = _joined(_units(reader, (rows_of_fit + rows_measured) * length))
    if packed is None:
        raise ValueError(nothing_made(config, ALL_UNITS))
    if len(packed.token_ids_RT) < rows_of_fit + rows_measured:
        return halves(packed)
    return packed.rows(0, rows_of_fit), packed.rows(rows_of_fit, rows_of_fit + rows_measured)


def _units(reader: UnitReader, num_tokens: int) -> Iterator[PackedUnit]:
    """The first units that together have ``num_tokens``, or all."""
    for unit in count():
        prepared = reader.read(unit)
        if prepared is None:
            return
        yield prepared.packed
        num_tokens -= prepared.num_tokens
        if num_tokens <= 0:
            return


def _joined(units: Iterator[PackedUnit]) -> PackedUnit | None:
    """The rows of all units as those of one; None where there are none."""
    packed = [unit for unit in units if len(unit.token_ids_RT)]
    if not packed:
        return None
    return PackedUnit(
        token_ids_RT=np.concatenate([unit.token_ids_RT for unit in packed]),
        document_starts=[starts for unit in packed for starts in unit.document_starts],
        num_dropped_tokens=0,
        is_context_RT=_joined_context(packed),
    )


def _joined_context(packed: Sequence[PackedUnit]) -> npt.NDArray[np.bool_] | None:
    contexts = [unit.is_context_RT for unit in packed if unit.is_context_RT is not None]
    return np.concatenate(contexts) if contexts else None
