"""The golden caches: one for each way of keeping targets and sketches, and their author.

``python -m tests.support.golden_cache NAME …`` writes, for each of these names in ``SPECS``,
``golden/NAME/`` (a cache) and ``golden/NAME.json`` (what its rows decode to). Name only those that
are new with a version of the format: that a cache written by an older program still reads the same
is what the golden caches are for. Rows are formulas rather than random numbers: anyone can work
them out.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import cache_format
from cache_format.codec.row import KeptIds, Row
from cache_format.codec.samples import TailSamples
from cache_format.coding.coefficients import CoefficientCode
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.corpus import CorpusShare, CorpusSpec
from cache_format.metadata.spec_parts.sketch import SketchSpec
from cache_format.metadata.spec_parts.targets import (
    CodedStates,
    Draws,
    KeptLogits,
    TailMoment,
    TargetSpec,
)
from cache_format.metadata.spec_parts.teacher import TeacherSpec
from cache_format.reader import Cache
from cache_format.tables.hidden_transform import HiddenTransform
from cache_format.tables.linear_transform import LinearTransform
from cache_format.tables.principal_components import projection_sha256
from cache_format.tables.shared_files import SharedFiles
from cache_format.tables.tail_moment import MomentTransform
from cache_format.tables.vocabulary_ranks import RankTable
from cache_format.writer import CacheWriter
from tests.support import ROOT

GOLDEN = ROOT / "tests/cache_format/golden"

VOCAB_SIZE = 100
RANKS = RankTable((np.arange(VOCAB_SIZE) * 7 % VOCAB_SIZE).astype(np.int32))
"""The id of rank r is 7r modulo 100."""
PROJECTION = np.array(
    [[0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5], [0.5, -0.5, -0.5]], np.float32
)

_WIDTH = 6
_LIMITS = (127, 7, 7, 1, 1, 1)
_NUM_SYMBOLS = (255, 15**2, 3**3)
"""Values of the symbols: of one component, of two and of three."""
_NUM_CLASSES = 2
_NUM_RAW_BITS = 2


def _frequencies(num_values: int) -> np.ndarray:
    """1, 2, 3 … up to the middle value and down to 1; what is left of 2¹⁴ goes to the middle."""
    value = np.arange(256)
    rising = np.where(value < num_values, 1 + np.minimum(value, num_values - 1 - value), 0)
    rising[num_values // 2] += 2**14 - rising.sum()
    return rising.astype(np.uint16)


def _even_frequencies(num_values: int) -> np.ndarray:
    """All alike; what is left of 2¹⁴ goes to the first."""
    even = np.where(np.arange(256) < num_values, 2**14 // num_values, 0)
    even[0] += 2**14 - even.sum()
    return even.astype(np.uint16)


_FREQUENCIES = np.stack([_frequencies(n) for n in _NUM_SYMBOLS])
_EVEN_FREQUENCIES = np.stack([_even_frequencies(n) for n in _NUM_SYMBOLS])


TRANSFORM = HiddenTransform(
    mean=((np.arange(_WIDTH) - 2) / 4).astype(np.float32),
    analysis=np.array(
        [[4 * (-1) ** (j - d) if d <= j else 0 for d in range(_WIDTH)] for j in range(_WIDTH)],
        np.float32,
    ),
    synthesis=(np.eye(_WIDTH) / 4 + np.eye(_WIDTH, k=1) / 4).astype(np.float32),
    code=CoefficientCode(
        np.array(_LIMITS, np.uint8),
        np.array([3 * 2**12, 2**12] + [0] * 254, np.uint16),
        np.stack([_FREQUENCIES, _EVEN_FREQUENCIES]),
        _NUM_RAW_BITS,
    ),
)
"""Coefficient j adds a quarter of itself to the numbers j and j + 1 of a state. A quarter of the
positions are expected in the second class."""

MOMENT = MomentTransform(
    basis=np.array([[0.5, 0.5, 0.5, 0.5], [0.5, -0.5, 0.5, -0.5]], np.float32),
    center=np.array([0.25, -0.5, 2.0], np.float32),
    transform=LinearTransform(
        mean=TRANSFORM.mean,
        analysis=TRANSFORM.analysis,
        synthesis=TRANSFORM.synthesis,
        code=CoefficientCode(
            np.array(_LIMITS, np.uint8),
            np.array([2**14] + [0] * 255, np.uint16),
            _FREQUENCIES[None],
        ),
    ),
)
"""Two directions of four; at two nodes these are six numbers a position, as a state has above. All
positions are of one class, and no bits are raw."""

_TOP_K = CacheSpec(
    teacher=TeacherSpec(
        source="golden/teacher",
        revision="0123abc",
        weights_sha256="11" * 32,
        tokenizer_sha256="22" * 32,
        dtype="bfloat16",
        attention="sdpa",
        hidden_size=4,
        num_layers=2,
        vocab_size=VOCAB_SIZE,
        head_rows=VOCAB_SIZE + 4,
        eos_token_id=0,
    ),
    corpus=CorpusSpec(
        source="golden/corpus",
        config="",
        split="train",
        revision="",
        files=(("a.txt", "33" * 32),),
        text_column="text",
        on_bad_document="skip",
        documents_per_unit=2,
    ),
    targets=TargetSpec(
        kind="top_k",
        kept=KeptLogits(top_k=4, keep_mass=1.0, inverse_temperatures=(0.5, 1.0)),
    ),
    sketch=SketchSpec(kind="rademacher", dim=8),
    sequence_length=6,
    validation_every=2,
    rows_per_batch=2,
    seed=1,
    ranks_sha256=RANKS.sha256,
)
_NO_SKETCH = SketchSpec(kind="none", dim=0)

SPECS = {
    "top_k": _TOP_K,
    "adaptive": replace(
        _TOP_K,
        targets=TargetSpec(
            kind="top_k",
            kept=KeptLogits(
                top_k=70,
                keep_mass=0.95,
                inverse_temperatures=(0.5, 0.75, 0.875, 1.0),
                num_levels=200,
            ),
            log_step=1 / 32,
        ),
        sketch=_NO_SKETCH,
    ),
    "sampled": replace(
        _TOP_K,
        targets=TargetSpec(kind="sampled", draws=Draws(num_draws=50, inverse_temperature=1.0)),
        sketch=replace(_TOP_K.sketch, dtype="float16"),
    ),
    "whole": replace(
        _TOP_K,
        targets=TargetSpec(
            kind="top_k", kept=replace(_TOP_K.targets.logits, top_k=VOCAB_SIZE, num_levels=255)
        ),
        sketch=replace(_TOP_K.sketch, dtype="float32"),
        sequence_length=3,
    ),
    "tail_draws": replace(
        _TOP_K,
        targets=TargetSpec(
            kind="top_k+sampled",
            kept=_TOP_K.targets.kept,
            draws=Draws(num_draws=6, inverse_temperature=0.5),
        ),
        sketch=replace(_TOP_K.sketch, hidden_states="random_layers:1"),
    ),
    "sampled_at_2": replace(
        _TOP_K,
        targets=TargetSpec(kind="sampled", draws=Draws(num_draws=50, inverse_temperature=0.5)),
        sketch=_NO_SKETCH,
    ),
    "pca": replace(
        _TOP_K,
        sketch=SketchSpec(
            kind="pca",
            dim=3,
            hidden_states="last",
            projection_sha256=projection_sha256(PROJECTION),
        ),
    ),
    "row_split": replace(_TOP_K, sketch=_NO_SKETCH, validation_every=3, validation_split="rows"),
    "paragraphs": replace(
        _TOP_K,
        corpus=replace(_TOP_K.sole_corpus, text_documents="paragraph"),
        sketch=_NO_SKETCH,
    ),
    "context": replace(_TOP_K, sketch=replace(_TOP_K.sketch, hidden_states="each:1,2")),
    "corpora": replace(
        _TOP_K,
        corpus=None,
        corpora=(
            CorpusShare(name="web", weight=0.75, units=2, corpus=_TOP_K.sole_corpus),
            CorpusShare(
                name="math",
                weight=0.25,
                units=1,
                corpus=replace(_TOP_K.sole_corpus, files=(("b.txt", "44" * 32),)),
            ),
        ),
        sketch=_NO_SKETCH,
    ),
    "hidden": replace(
        _TOP_K,
        teacher=replace(_TOP_K.teacher, hidden_size=_WIDTH),
        targets=TargetSpec(
            kind="hidden",
            hidden=CodedStates(
                max_kl=0.05,
                step=0.25,
                quantization="rate_distortion",
                num_components=_WIDTH,
                num_symbols=len(_NUM_SYMBOLS),
                num_classes=_NUM_CLASSES,
                num_raw_bits=_NUM_RAW_BITS,
                self_kl=(0.05, 0.03125, 1e-05),
                transform_sha256=TRANSFORM.sha256,
            ),
        ),
    ),
}
SPECS["top_k_hidden"] = replace(
    SPECS["hidden"],
    targets=replace(
        SPECS["hidden"].targets,
        kind="top_k+hidden",
        kept=_TOP_K.targets.kept,
        log_step=1 / 32,
    ),
    sketch=_NO_SKETCH,
)
SPECS["tail_moment"] = replace(
    SPECS["tail_draws"],
    targets=replace(
        SPECS["tail_draws"].targets,
        moment=TailMoment(
            dim=2,
            step=0.25,
            num_components=_WIDTH,
            num_symbols=len(_NUM_SYMBOLS),
            num_classes=1,
            num_raw_bits=0,
            transform_sha256=MOMENT.sha256,
        ),
    ),
    sketch=_NO_SKETCH,
)
ROWS_OF_UNIT = {
    "top_k": {0: 3, 1: 1, 2: 0},
    "adaptive": {0: 2},
    "sampled": {0: 1, 1: 1},
    "whole": {1: 1},
    "tail_draws": {0: 2, 1: 1},
    "sampled_at_2": {0: 1},
    "pca": {0: 1, 1: 1},
    "row_split": {0: 1, 1: 5},
    "paragraphs": {0: 1},
    "context": {0: 1, 1: 1},
    "corpora": {1: 1, 2: 1},
    "hidden": {0: 2, 1: 1},
    "top_k_hidden": {0: 2},
    "tail_moment": {0: 2, 1: 1},
}
_NUM_VALIDATION_ROWS = {0: 1, 1: 2}
"""Of ``row_split``: ⌈1/3⌉ − 0, and ⌈10/3⌉ − ⌈5/3⌉."""


def golden_row(name: str, number: int) -> Row:
    """Row ``number``: a document starts at token ``number + 2``, in odd rows also at T."""
    spec = SPECS[name]
    num_positions = spec.sequence_length
    positions = np.arange(num_positions)
    starts = np.array([number + 2, *([num_positions] if number % 2 else [])], np.int32)
    starts = np.unique(starts.clip(max=num_positions))
    shape = (num_positions, spec.sketch.num_states, spec.sketch.dim)
    sketch = (np.arange(np.prod(shape)) * 37 * (number + 1) % 97 - 48) / 16
    row = Row(
        token_ids=(np.arange(num_positions + 1) * 73 + number).astype(np.int32) % VOCAB_SIZE,
        document_starts=starts,
        is_context=positions < 2 if name == "context" else None,
        sketch=sketch.reshape(shape).astype(np.float32) if spec.sketch.dim else None,
    )
    if spec.targets.hidden is not None:
        row = replace(row, coefficients=_coefficients(number))
    if spec.targets.moment is not None:
        row = replace(row, moment_coefficients=_coefficients(number))
    if spec.targets.kind == "hidden":
        return row
    return replace(row, kept_ids=_kept_ids(name, number, row))


def _coefficients(number: int) -> np.ndarray:
    """Below, at and above the limits: up to ±319, twice ±11 and three times ±2."""
    at = 31 * np.arange(6)[:, None] + 17 * np.arange(_WIDTH) + 5 * number
    large, small = at % 23 - 11, at % 5 - 2
    return np.hstack([29 * large[:, :1], large[:, 1:3], small[:, 3:]]).astype(np.int16)


def _kept_ids(name: str, number: int, row: Row) -> KeptIds:
    targets, num_positions = SPECS[name].targets, SPECS[name].sequence_length
    has_draws = targets.kind == "top_k+sampled"
    positions, starts, is_context = np.arange(num_positions), row.document_starts, row.is_context
    top_k = 5 if targets.kept is None else targets.kept.top_k
    num_kept = (1 + (positions * (37 if name == "adaptive" else 1) + number) % top_k).astype(
        np.uint16
    )
    if name == "whole":
        num_kept[:] = VOCAB_SIZE
    num_kept[starts - 1] = 0
    if is_context is not None:
        num_kept[is_context] = 0
    rank = np.concatenate([np.arange(count) for count in num_kept])
    position = np.repeat(positions, num_kept)
    gaps = rank * (1.3 + position / 7) + 20.0 * (rank == 3)
    if top_k > 5:
        gaps = 0.4 * (rank // 2) * (1 + position / 7)
    nodes = np.array(targets.inverse_temperatures)
    tail = -1 - positions[:, None] / 2 - number / 300 + (1 - nodes) * (3 + positions[:, None] / 1.5)
    tail[number % num_positions] = -np.inf
    counts = None
    if targets.kind == "sampled":
        of_position = np.repeat(num_kept, num_kept).astype(int)
        first = 50 - of_position * (of_position - 1) // 2
        counts = np.where(rank == 0, first, of_position - rank).astype(np.uint16)
        gaps = np.log(first / counts)
    if targets.kind == "sampled" or name == "whole":
        tail[:] = -np.inf
    return KeptIds(
        num_ids=num_kept,
        ids=((position * 11 + rank * 13 + number) % VOCAB_SIZE).astype(np.int32),
        gaps=gaps.astype(np.float32),
        counts=counts,
        draws=_tail_draws(num_kept, gaps, tail[:, 0], number) if has_draws else None,
        tail_log_mass=tail.astype(np.float32),
        next_logprob=(-(positions + 1) / 3 - number).astype(np.float32),
    )


def _tail_draws(
    num_kept: np.ndarray, gaps: np.ndarray, tail: np.ndarray, number: int
) -> TailSamples:
    """Six draws of 1 to 4 ids: the next ones after those kept, each second one at the same gap."""
    counts_of = {1: [6], 2: [5, 1], 3: [3, 2, 1], 4: [2, 2, 1, 1]}
    ends = np.cumsum(num_kept, dtype=np.int64)
    num_ids, ids, counts, gaps_of_ids = [], [], [], []
    for t, num in enumerate(num_kept.tolist()):
        num_drawn = 1 + (t + number) % 4 if num and np.isfinite(tail[t]) else 0
        num_ids.append(num_drawn)
        for index in range(num_drawn):
            ids.append((t * 11 + (num + index) * 13 + number) % VOCAB_SIZE)
            counts.append(counts_of[num_drawn][index])
            gaps_of_ids.append(gaps[ends[t] - 1] + 0.3 + 1.9 * (index // 2))
    return TailSamples(
        num_ids=np.array(num_ids, np.uint16),
        ids=np.array(ids, np.int32),
        counts=np.array(counts, np.uint16),
        gaps=np.array(gaps_of_ids, np.float32),
    )


def golden_rows(name: str) -> dict[str, list[Row]]:
    """The rows by split, in order, as they are given to the writer."""
    rows: dict[str, list[Row]] = {"train": [], "validation": []}
    for unit, num_rows in ROWS_OF_UNIT[name].items():
        num_train = num_rows if unit % 2 else 0
        if name == "row_split":
            num_train = num_rows - _NUM_VALIDATION_ROWS[unit]
        rows_of_unit = _rows_of_unit(name, unit, num_rows)
        rows["train"] += rows_of_unit[:num_train]
        rows["validation"] += rows_of_unit[num_train:]
    return rows


def _rows_of_unit(name: str, unit: int, num_rows: int) -> list[Row]:
    return [golden_row(name, 3 * unit + index) for index in range(num_rows)]


def write_golden(name: str, root: Path) -> None:
    """Write the cache ``name``; the first one and those of states have a file of their teacher."""
    has_states = SPECS[name].targets.hidden is not None
    shared = SharedFiles(
        ranks=RANKS,
        projection=PROJECTION if name == "pca" else None,
        transform=TRANSFORM if has_states else None,
        moment=None if SPECS[name].targets.moment is None else MOMENT,
    )
    writer = CacheWriter.create_or_open(root, SPECS[name], shared)
    if name == "top_k":
        writer.write_attachments(_build_teacher)
    if has_states:
        writer.write_attachments(_build_head)
    for unit, num_rows in ROWS_OF_UNIT[name].items():
        writer.write_unit(
            unit,
            _rows_of_unit(name, unit, num_rows),
            num_documents=2,
            num_skipped_documents=unit,
            num_dropped_tokens=4,
            corpus_position=f"a.txt, documents {2 * unit} to {2 * unit + 1}",
        )
    writer.publish_manifest(num_tokens_requested=20, complete=True)


def _build_teacher(directory: Path) -> None:
    (directory / "config.json").write_text("{}\n")


def golden_head() -> np.ndarray:
    """[104, 6], of sixteenths."""
    numbers = np.arange(104 * _WIDTH) * 29 % 33 - 16
    return (numbers.reshape(104, _WIDTH) / 16).astype(np.float32)


def _build_head(directory: Path) -> None:
    save_file({"embedding": golden_head()}, directory / "embedding.safetensors")


def decoded(root: Path) -> dict[str, list[dict[str, Any]]]:
    """All rows by split, as JSON values: six decimals, −inf is null."""
    cache = cache_format.open(root)
    return {
        split: [
            {"unit": unit} | as_json(_arrays(row, cache)) for unit, row in cache.iter_rows(split)
        ]
        for split in ("train", "validation")
    }


def _arrays(row: Row, cache: Cache) -> dict[str, Any]:
    """The arrays of a row by name; those of its kept ids and draws after the others."""
    arrays = {name: array for name, array in vars(row).items() if name != "kept_ids"}
    if cache.transform is not None:
        assert row.coefficients is not None
        arrays["states"] = cache.transform.states(row.coefficients)
    if cache.moment is not None:
        assert row.moment_coefficients is not None
        arrays["moments"] = cache.moment.moments(row.moment_coefficients)
    if row.kept_ids is None:
        return arrays
    kept = {f"kept_{name}": array for name, array in vars(row.kept).items() if name != "draws"}
    if row.kept.draws is None:
        return arrays | kept
    drawn = {f"drawn_{name}": array for name, array in vars(row.kept.draws).items()}
    return arrays | kept | drawn


def as_json(arrays: dict[str, Any]) -> dict[str, Any]:
    """Arrays by name as JSON values."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        return None if value == -np.inf else value if isinstance(value, bool) else round(value, 6)

    return {
        name: None if array is None else plain(array.tolist()) for name, array in arrays.items()
    }


def main() -> None:
    """Write the golden caches that are named, which must not be there."""
    for name in sys.argv[1:]:
        (GOLDEN / name).mkdir()
        write_golden(name, GOLDEN / name)
        lines = [
            f" {json.dumps(split)}: [\n  " + ",\n  ".join(json.dumps(row) for row in rows) + "\n ]"
            for split, rows in decoded(GOLDEN / name).items()
        ]
        (GOLDEN / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
