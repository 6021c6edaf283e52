"""Specs, rows and caches for the tests: small, and pure functions of their arguments."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cache_format import plain
from cache_format.codec import Row
from cache_format.spec import (
    CacheSpec,
    CorpusSpec,
    SketchSpec,
    TargetSpec,
    TeacherSpec,
)
from cache_format.writer import CacheWriter

ROWS_OF_UNIT = {0: 3, 1: 5, 2: 0, 3: 2}


def sample_spec(*, with_sketch: bool = True, **changes: Any) -> CacheSpec:
    """A spec of 12 positions, 40 ids and at most 5 kept ones; ``changes`` replace some fields."""
    fields: dict[str, Any] = {
        "teacher": TeacherSpec(
            source="teacher",
            revision="r1",
            weights_sha256="w" * 64,
            tokenizer_sha256="t" * 64,
            dtype="float32",
            attention="sdpa",
            hidden_size=16,
            num_layers=2,
            vocab_size=40,
            head_rows=48,
            eos_token_id=3,
        ),
        "corpus": CorpusSpec(
            source="corpus",
            config="",
            split="train",
            revision="",
            files=(("a.parquet", "a" * 64), ("b.parquet", "b" * 64)),
            text_column="text",
            on_bad_document="error",
            documents_per_unit=4,
        ),
        "targets": TargetSpec(top_k=5, keep_mass=0.9, inverse_temperatures=(0.5, 0.75, 1.0)),
        "sketch": SketchSpec(kind="rademacher", dim=8)
        if with_sketch
        else SketchSpec(kind="none", dim=0),
        "sequence_length": 12,
        "validation_every": 3,
        "rows_per_batch": 2,
        "seed": 7,
    }
    return CacheSpec(**(fields | changes))


def sample_row(seed: int, spec: CacheSpec) -> Row:
    """A row that keeps every rule of the format; some rows have documents that start inside."""
    random = np.random.default_rng(seed)
    num_positions, top_k = spec.sequence_length, spec.targets.top_k
    num_nodes = len(spec.targets.inverse_temperatures)
    starts = np.flatnonzero(random.random(num_positions) < 0.2).astype(np.int32) + 1
    num_kept = random.integers(1, top_k + 1, num_positions).astype(np.uint16)
    num_kept[starts - 1] = 0
    ids = [random.choice(spec.teacher.vocab_size, n, replace=False) for n in num_kept]
    gaps = [np.cumsum(np.r_[0.0, random.exponential(1.5, n - 1)]) for n in num_kept if n]
    tail = -np.sort(random.exponential(4.0, (num_positions, num_nodes)), axis=1)
    tail[random.random(num_positions) < 0.2] = -np.inf
    return Row(
        token_ids=random.integers(0, spec.teacher.vocab_size, num_positions + 1).astype(np.int32),
        document_starts=starts,
        num_kept=num_kept,
        kept_ids=np.concatenate([*ids, []]).astype(np.int32),
        gaps=np.concatenate([*gaps, []]).astype(np.float32),
        tail_log_mass=tail.astype(np.float32),
        next_logprob=-random.exponential(2.0, num_positions).astype(np.float32),
        sketch=random.normal(size=(num_positions, spec.sketch.dim)).astype(np.float32)
        if spec.sketch.kind != "none"
        else None,
    )


def unit_rows(unit: int, spec: CacheSpec) -> list[Row]:
    """The rows of ``unit``."""
    return [sample_row(1000 * unit + index, spec) for index in range(ROWS_OF_UNIT[unit])]


def build_teacher(directory: Path) -> None:
    """The files of a pretended teacher, one in a subdirectory."""
    (directory / "config.json").write_text('{"model_type": "sample"}')
    (directory / "templates").mkdir()
    (directory / "templates" / "chat.jinja").write_text("{{ messages }}")


def fill(writer: CacheWriter, units: list[int]) -> None:
    """Write ``units``."""
    for unit in units:
        writer.write_unit(
            unit,
            unit_rows(unit, writer.spec),
            num_documents=4,
            num_skipped_documents=unit,
            num_dropped_tokens=5,
            corpus_position=f"a.parquet, documents {4 * unit} to {4 * unit + 3}",
        )


def write_sample_cache(path: Path, spec: CacheSpec | None = None) -> CacheSpec:
    """A complete cache of four units: validation, train, an empty one, validation."""
    spec = spec or sample_spec()
    writer = CacheWriter.create_or_open(path, spec)
    writer.write_attachments(build_teacher)
    fill(writer, sorted(ROWS_OF_UNIT))
    writer.publish_manifest(num_tokens_requested=120, complete=True)
    return spec


def shard_path(root: Path, unit: int) -> Path:
    """The shard of ``unit``."""
    (path,) = (root / "shards").glob(f"{unit:05d}-*.arrow")
    return path


def reseal(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the fields of a sealed file, as a faulty program might."""
    fields = plain.unseal(path.read_bytes(), path, "")
    change(fields)
    path.write_bytes(plain.seal(fields))


def contents(root: Path) -> dict[str, str]:
    """The hash of every file of a cache."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def assert_same_row(found: Row, expected: Row) -> None:
    """Every array of two rows is equal, bit by bit."""
    for name in vars(expected):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def assert_decoded(found: Row, given: Row, spec: CacheSpec) -> None:
    """``found`` is ``given`` up to the errors that the format promises not to exceed."""
    scored = given.scored()
    for name in ("token_ids", "document_starts", "num_kept", "kept_ids"):
        np.testing.assert_array_equal(getattr(found, name), getattr(given, name), err_msg=name)
    np.testing.assert_allclose(found.gaps, given.gaps, rtol=0, atol=spec.targets.logit_step / 2)
    for name, atol, rtol in (
        ("tail_log_mass", spec.targets.tail_step / 2, 1e-7),
        ("next_logprob", 2**-25, 2**-11),
    ):
        values, wanted = getattr(found, name), getattr(given, name)
        np.testing.assert_allclose(values[scored], wanted[scored], rtol=rtol, atol=atol)
        assert not values[~scored].any()
    if given.sketch is None:
        assert found.sketch is None
    else:
        assert found.sketch is not None
        half_step = np.abs(given.sketch).max(axis=1) / 254
        errors = np.abs(found.sketch - given.sketch).max(axis=1)
        assert (errors[scored] <= half_step[scored] * (1 + 1e-5)).all()
        assert not found.sketch[~scored].any()
