"""Stage one from top to bottom: corpus → rows → teacher → targets and sketch → cache.

In: the settings, and the directory of a cache, new or begun. Out: a cache that holds the budget,
or the whole corpus. Called by the command line. A unit is made from the spec and its own documents
alone, and counts once its receipt is there: so this may be killed at any moment and started again.
B rows of a forward pass, T positions, P scored positions, K kept, N nodes, D width, d sketch.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from cache_format import layout
from cache_format.codec import Row
from cache_format.manifest import Manifest, ShardEntry
from cache_format.spec import CacheSpec
from cache_format.writer import CacheWriter
from stages.cache_teacher.config import ALL_UNITS, CacheTeacherConfig, UnitRange
from stages.cache_teacher.corpus import Corpus, resolve_corpus
from stages.cache_teacher.held import held_already
from stages.cache_teacher.identity import identify
from stages.cache_teacher.packing import PackedUnit, pack, tokenize
from stages.cache_teacher.sketch import sketch, sketch_matrix
from stages.cache_teacher.targets import NonFiniteError, Targets, compute_targets
from stages.cache_teacher.teacher import Teacher
from stages.cache_teacher.teacher_files import TeacherSource, resolve_teacher
from stages.device import choose_device

_MANIFEST_SECONDS = 60.0  # receipts are what a resume goes by; the manifest may lag behind them

Phase = Literal["resolving", "loading teacher", "caching", "done", "corpus ended"]


@dataclass(frozen=True, kw_only=True)
class CacheProgress:
    """How far stage one is. Tokens are positions."""

    phase: Phase
    tokens_done: int
    """Positions of the budget that the cache holds, those of the open unit included."""
    tokens_total: int
    """The budget; of a range of units what it will hold, as far as can be told."""
    tokens_cached_this_run: int
    bytes_written: int
    """Bytes of the shards finished by this run."""
    unit: int
    corpus_position: str
    """File and documents of the open unit."""
    documents: int
    """Documents cached by this run."""


def cache_teacher(
    config: CacheTeacherConfig,
    out: Path | str,
    *,
    recipe_toml: str,
    report: Callable[[CacheProgress], None],
    units: UnitRange = ALL_UNITS,
) -> Manifest:
    """Fill the cache at ``out`` up to ``config.num_tokens`` positions, keeping what is there.

    ``out`` is a directory or a URL.

    With ``units``, make those only; without an end, as many as the budget needs if those before are
    like them. The cache is complete if the units from 0 on hold the budget or the corpus: others
    are parts, which can be merged.
    Raises ValueError for a teacher, corpus or document that cannot be used, CacheError where
    ``out`` is another cache or no cache, and lets running out of memory through.
    """
    progress = _Progress(config.num_tokens, units, report)
    progress.show("resolving")
    source = resolve_teacher(config)
    corpus = resolve_corpus(config)
    if not corpus.has_unit(0):
        raise ValueError(f"corpus {config.corpus!r}: holds no documents")
    spec, ranks = identify(config, source, corpus, out)
    if units == ALL_UNITS and (held := held_already(out, spec, config.num_tokens, corpus)):
        progress.tokens_cached = sum(entry.num_tokens for entry in held.shards)
        progress.show("done" if progress.tokens_cached >= config.num_tokens else "corpus ended")
        corpus.close()
        return held
    device = choose_device(config.device)

    writer = CacheWriter.create_or_open(out, spec, ranks)
    writer.storage.publish(layout.RECIPE, recipe_toml.encode())
    maker = _UnitMaker(config, spec, source, device, corpus, writer, progress)
    writer.write_attachments(lambda directory: maker.teacher.export(directory))
    finished = writer.finished_units()
    phase: Phase = "done"
    num_rows, published = 0, time.monotonic()
    for unit in units.numbers():
        if _is_enough(progress.tokens_cached, unit, units, config.num_tokens):
            break
        entry = finished.get(unit) or maker.make(unit)
        if entry is None:
            phase = "corpus ended"
            break
        progress.close_unit(unit, entry)
        num_rows += entry.num_rows
        is_due = unit not in finished and time.monotonic() - published > _MANIFEST_SECONDS
        if is_due:
            writer.publish_manifest(config.num_tokens, complete=False)
            published = time.monotonic()

    if num_rows == 0:
        raise ValueError(_nothing_made(config, units))
    complete = _is_complete(writer, config.num_tokens, corpus)
    corpus.close()
    progress.show(phase)
    return writer.publish_manifest(config.num_tokens, complete)


def _is_enough(tokens_cached: int, unit: int, units: UnitRange, num_tokens: int) -> bool:
    """Whether the units before ``unit`` hold the budget; those before the range are like it."""
    if units.first > 0 and (units.end is not None or unit == units.first):
        return False
    share = 1 if units.first == 0 else unit / (unit - units.first)
    return tokens_cached * share >= num_tokens


def _is_complete(writer: CacheWriter, num_tokens: int, corpus: Corpus) -> bool:
    """Whether the units before the first missing one are the budget, or the whole corpus."""
    finished = writer.finished_units()
    num_units = next(unit for unit in count() if unit not in finished)
    held = sum(finished[unit].num_tokens for unit in range(num_units))
    return held >= num_tokens or not corpus.has_unit(num_units)


def _nothing_made(config: CacheTeacherConfig, units: UnitRange) -> str:
    if units == ALL_UNITS:
        return (
            f"corpus {config.corpus!r}: no unit fills a row of {config.sequence_length} tokens. "
            "Lower sequence_length, or raise documents_per_unit."
        )
    return (
        f"corpus {config.corpus!r}: none of the units from {units.first} on fills a row of "
        f"{config.sequence_length} tokens: the corpus may have ended before them."
    )


@dataclass
class _UnitMaker:
    """All that a unit is made with. The teacher's weights are loaded for the first one that is."""

    config: CacheTeacherConfig
    spec: CacheSpec
    source: TeacherSource
    device: torch.device
    corpus: Corpus
    writer: CacheWriter
    progress: "_Progress"

    @cached_property
    def teacher(self) -> Teacher:
        self.progress.show("loading teacher")
        return Teacher(self.source, self.device)

    def make(self, unit: int) -> ShardEntry | None:
        """Make and publish ``unit``; None where the corpus has ended before it."""
        documents = self.corpus.read_unit(unit)
        if documents is None:
            return None
        teacher_spec = self.spec.teacher
        ids = tokenize(self.source.tokenizer, documents.texts, teacher_spec.vocab_size)
        packed = pack(ids, teacher_spec.eos_token_id, self.spec.sequence_length)
        rows = _unit_rows(unit, packed, self.teacher, self.spec, self.config)
        self.progress.begin_unit(unit, documents.position)
        entry = self.writer.write_unit(
            unit,
            self.progress.counted(rows),
            num_documents=len(documents.texts),
            num_skipped_documents=documents.num_skipped,
            num_dropped_tokens=packed.num_dropped_tokens,
            corpus_position=documents.position,
        )
        self.progress.end_unit(entry)
        return entry


def _unit_rows(
    unit: int, packed: PackedUnit, teacher: Teacher, spec: CacheSpec, config: CacheTeacherConfig
) -> Iterator[Row]:
    """The rows of one unit, made a forward pass at a time; no pass mixes two units."""
    matrix_Dd = None
    if spec.sketch.kind != "none":
        width = spec.teacher.hidden_size
        matrix_Dd = sketch_matrix(spec.sketch, width, spec.seed, unit, teacher.device)
    for first in range(0, len(packed.token_ids_RT), config.rows_per_forward):
        batch = packed.rows(first, first + config.rows_per_forward)
        scored_BT = batch.scored_RT()
        try:
            targets, sketch_Pd = _targets_of(batch, scored_BT, matrix_Dd, teacher, spec, config)
        except NonFiniteError as error:
            row, position = np.argwhere(scored_BT)[error.position]
            raise ValueError(
                f"unit {unit}, row {first + row}, position {position}: the teacher produced NaN or "
                f"infinity in {spec.teacher.dtype}. Try another teacher_dtype (float32, bfloat16); "
                "if it persists, the weights are damaged. Nothing of this unit was written."
            ) from error
        yield from _rows_of(batch, scored_BT, targets, sketch_Pd)


def _targets_of(
    batch: PackedUnit,
    scored_BT: np.ndarray,
    matrix_Dd: torch.Tensor | None,
    teacher: Teacher,
    spec: CacheSpec,
    config: CacheTeacherConfig,
) -> tuple[Targets, np.ndarray | None]:
    """Targets and sketch of the scored positions, in their order."""
    inputs_BT, labels_BT = batch.token_ids_RT[:, :-1], batch.token_ids_RT[:, 1:]
    hidden_BTD, mean_BTD = teacher.forward(
        inputs_BT, batch.document_starts, with_mean=matrix_Dd is not None
    )
    is_scored_BT = torch.from_numpy(scored_BT).to(teacher.device)
    labels_P = torch.from_numpy(labels_BT[scored_BT].astype(np.int64)).to(teacher.device)
    targets = compute_targets(
        hidden_BTD[is_scored_BT], labels_P, teacher.head, spec.targets, config.head_chunk
    )
    if matrix_Dd is None or mean_BTD is None:
        return targets, None
    return targets, sketch(mean_BTD[is_scored_BT], matrix_Dd).cpu().numpy()


def _rows_of(
    batch: PackedUnit, scored_BT: np.ndarray, targets: Targets, sketch_Pd: np.ndarray | None
) -> Iterator[Row]:
    """Spread the scored positions' targets over the rows; the other positions keep nothing."""

    def spread(values_PX: np.ndarray) -> np.ndarray:
        spread_BTX = np.zeros((*scored_BT.shape, *values_PX.shape[1:]), values_PX.dtype)
        spread_BTX[scored_BT] = values_PX
        return spread_BTX

    num_kept_BT = spread(targets.num_kept_P)
    tail_BTN = spread(targets.tail_log_mass_PN)
    next_BT = spread(targets.next_logprob_P)
    sketch_BTd = None if sketch_Pd is None else spread(sketch_Pd)
    is_kept_PK = np.arange(targets.gaps_PK.shape[1]) < targets.num_kept_P[:, None]
    ends_B = num_kept_BT.sum(1, dtype=np.int64).cumsum()[:-1]
    kept_ids = np.split(targets.kept_ids_PK[is_kept_PK], ends_B)
    gaps = np.split(targets.gaps_PK[is_kept_PK], ends_B)
    for row, starts in enumerate(batch.document_starts):
        yield Row(
            token_ids=batch.token_ids_RT[row],
            document_starts=starts,
            num_kept=num_kept_BT[row],
            kept_ids=kept_ids[row],
            gaps=gaps[row],
            tail_log_mass=tail_BTN[row],
            next_logprob=next_BT[row],
            sketch=None if sketch_BTd is None else sketch_BTd[row],
        )


class _Progress:
    """What has been done so far, told to ``report`` at every forward pass and change of phase."""

    def __init__(
        self, num_tokens: int, units: UnitRange, report: Callable[[CacheProgress], None]
    ) -> None:
        self.tokens_cached = 0
        self._num_tokens, self._units, self._report = num_tokens, units, report
        self._now = CacheProgress(
            phase="resolving",
            tokens_done=0,
            tokens_total=num_tokens,
            tokens_cached_this_run=0,
            bytes_written=0,
            unit=0,
            corpus_position="",
            documents=0,
        )

    def show(self, phase: Phase) -> None:
        self._now = replace(self._now, phase=phase, tokens_done=self.tokens_cached)
        self._report(self._now)

    def begin_unit(self, unit: int, corpus_position: str) -> None:
        self._now = replace(self._now, unit=unit, corpus_position=corpus_position)
        self.show("caching")

    def counted(self, rows: Iterator[Row]) -> Iterator[Row]:
        """``rows``, with every one of them told to ``report`` as it goes by."""
        for row in rows:
            yield row
            made = len(row.num_kept)
            self._now = replace(
                self._now,
                phase="caching",
                tokens_done=self._now.tokens_done + made,
                tokens_cached_this_run=self._now.tokens_cached_this_run + made,
            )
            self._report(self._now)

    def close_unit(self, unit: int, entry: ShardEntry) -> None:
        """The cache holds ``unit``, made by this run or before."""
        self.tokens_cached += entry.num_tokens
        if self._units != ALL_UNITS:  # take all units to be like those so far
            mean = self.tokens_cached / (unit + 1 - self._units.first)
            last = self._num_tokens / max(1.0, mean)
            last = last if self._units.end is None else self._units.end
            total = max(self.tokens_cached, round(mean * (last - self._units.first)))
            self._now = replace(self._now, tokens_total=total)

    def end_unit(self, entry: ShardEntry) -> None:
        self._now = replace(
            self._now,
            bytes_written=self._now.bytes_written + entry.num_bytes,
            documents=self._now.documents + entry.num_documents,
        )
