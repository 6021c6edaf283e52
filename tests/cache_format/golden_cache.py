"""The golden cache: what is in it, and the program that wrote it.

``python -m tests.cache_format.golden_cache`` writes ``golden/v1/`` (a cache) and ``golden/v1.json``
(what its rows decode to). Run it only together with a new version of the format: that a cache
written by an older program still reads the same is what the golden cache is for. Rows are formulas
rather than random numbers, so that anyone can work them out.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

import cache_format
from cache_format.codec import Row
from cache_format.spec import CacheSpec, CorpusSpec, SketchSpec, TargetSpec, TeacherSpec
from cache_format.writer import CacheWriter

GOLDEN = Path(__file__).parent / "golden" / "v1"
GOLDEN_ROWS = Path(__file__).parent / "golden" / "v1.json"

from tests.cache_format.sample_cache import sample_ranks

SPEC = CacheSpec(
    teacher=TeacherSpec(
        source="golden/teacher",
        revision="0123abc",
        weights_sha256="11" * 32,
        tokenizer_sha256="22" * 32,
        dtype="bfloat16",
        attention="sdpa",
        hidden_size=4,
        num_layers=2,
        vocab_size=70_000,
        head_rows=70_016,
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
    targets=TargetSpec(top_k=4, keep_mass=0.95, inverse_temperatures=(0.5, 1.0)),
    sketch=SketchSpec(kind="rademacher", dim=8),
    sequence_length=6,
    validation_every=2,
    rows_per_batch=2,
    seed=1,
)
ROWS_OF_UNIT = {0: 3, 1: 1, 2: 0}


def golden_row(number: int) -> Row:
    """Row ``number``: a document starts at token ``number + 2``, in odd rows also at 6."""
    positions = np.arange(SPEC.sequence_length)
    starts = np.array([number + 2, *([6] if number % 2 else [])], np.int32)
    num_kept = (1 + (positions + number) % 4).astype(np.uint16)
    num_kept[starts - 1] = 0
    rank = np.concatenate([np.arange(count) for count in num_kept])
    position = np.repeat(positions, num_kept)
    tail = np.stack([0.5 - positions / 8, -1.0 - positions / 2 - number / 300], axis=1)
    tail[number % 6] = -np.inf
    return Row(
        token_ids=(np.arange(SPEC.sequence_length + 1) * 9973 + number).astype(np.int32),
        document_starts=starts,
        num_kept=num_kept,
        kept_ids=((position * 11_003 + rank * 257 + number) % 70_000).astype(np.int32),
        gaps=(rank * (1.3 + position / 7) + 20.0 * (rank == 3)).astype(np.float32),
        tail_log_mass=tail.astype(np.float32),
        next_logprob=(-(positions + 1) / 3 - number).astype(np.float32),
        sketch=((np.arange(48) * 37 * (number + 1) % 97 - 48) / 16)
        .reshape(6, 8)
        .astype(np.float32),
    )


def write_golden(root: Path) -> None:
    """Write the cache."""
    writer = CacheWriter.create_or_open(root, SPEC, sample_ranks())
    writer.write_attachments(_build_teacher)
    for unit, num_rows in ROWS_OF_UNIT.items():
        writer.write_unit(
            unit,
            [golden_row(3 * unit + index) for index in range(num_rows)],
            num_documents=2,
            num_skipped_documents=unit,
            num_dropped_tokens=4,
            corpus_position=f"a.txt, documents {2 * unit} to {2 * unit + 1}",
        )
    writer.publish_manifest(num_tokens_requested=20, complete=True)


def _build_teacher(directory: Path) -> None:
    (directory / "config.json").write_text("{}\n")


def decoded(root: Path) -> dict[str, list[dict[str, Any]]]:
    """All rows by split, as JSON values; −inf is null."""
    cache = cache_format.open(root)
    return {
        split: [{"unit": unit} | _as_json(row) for unit, row in cache.iter_rows(split)]
        for split in ("train", "validation")
    }


def _as_json(row: Row) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        return None if value == -np.inf else value

    return {name: plain(value.tolist()) for name, value in vars(row).items()}


def main() -> None:
    """Replace the golden cache."""
    shutil.rmtree(GOLDEN, ignore_errors=True)
    GOLDEN.parent.mkdir(exist_ok=True)
    write_golden(GOLDEN)
    lines = [
        f" {json.dumps(split)}: [\n  " + ",\n  ".join(json.dumps(row) for row in rows) + "\n ]"
        for split, rows in decoded(GOLDEN).items()
    ]
    GOLDEN_ROWS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    (GOLDEN.parent / ".gitattributes").write_text("* -text\n")


if __name__ == "__main__":
    main()
