"""Specs, rows and caches for the tests: small, and pure functions of their arguments."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cache_format.codec.row import KeptIds, Row
from cache_format.codec.samples import TailSamples
from cache_format.coding.fitted_code import fit_code
from cache_format.metadata import sealed_json
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.corpus import CorpusSpec
from cache_format.metadata.spec_parts.sketch import SketchSpec
from cache_format.metadata.spec_parts.targets import (
    CodedStates,
    Draws,
    KeptLogits,
    TailMoment,
    TargetSpec,
)
from cache_format.metadata.spec_parts.teacher import TeacherSpec
from cache_format.tables.hidden_transform import HiddenTransform
from cache_format.tables.linear_transform import LinearTransform
from cache_format.tables.principal_components import projection_sha256
from cache_format.tables.shared_files import SharedFiles
from cache_format.tables.tail_moment import MomentTransform
from cache_format.tables.vocabulary_ranks import RankTable
from cache_format.writer import CacheWriter

ROWS_OF_UNIT = {0: 3, 1: 5, 2: 0, 3: 2}


def sample_ranks(vocab_size: int = 40) -> RankTable:
    """A table that is not in order of id."""
    return RankTable.by_weight(np.random.default_rng(3).integers(0, 9, vocab_size))


def sample_shared(spec: CacheSpec | None = None) -> SharedFiles:
    """The files that the shards of a sample cache share."""
    if spec is None:
        return SharedFiles(ranks=sample_ranks())
    transform = None if spec.targets.hidden is None else sample_transform()
    return SharedFiles(
        ranks=sample_ranks(),
        projection=sample_projection(spec),
        transform=transform,
        moment=None if spec.targets.moment is None else sample_moment(),
    )


@cache
def sample_transform(width: int = 16, num_components: int = 6) -> HiddenTransform:
    """An orthonormal transform in steps of 1/8, and the code of small coefficients."""
    basis = orthonormal(width, num_components).T
    spread = np.arange(num_components, 0, -1)
    rng = np.random.default_rng(5)
    drawn = rng.normal(0, spread, (2000, num_components)) * rng.choice([0.5, 2], (2000, 1))
    return HiddenTransform(
        mean=(np.arange(width) / 7).astype(np.float32),
        analysis=basis * np.float32(8),
        synthesis=basis * np.float32(1 / 8),
        code=fit_code(np.rint(drawn).astype(np.int64), max_classes=2),
    )


@cache
def sample_moment(width: int = 16, dim: int = 2, num_nodes: int = 3) -> MomentTransform:
    """A basis of ``dim`` directions, and a transform of what they give at ``num_nodes`` nodes."""
    of_vectors = sample_transform(num_nodes * (dim + 1), num_components=5)
    return MomentTransform(
        basis=orthonormal(width, dim).T.copy(),
        center=(np.arange(dim + 1) / 5).astype(np.float32),
        transform=LinearTransform(
            mean=of_vectors.mean,
            analysis=of_vectors.analysis,
            synthesis=of_vectors.synthesis,
            code=of_vectors.code,
        ),
    )


def sample_projection(spec: CacheSpec) -> np.ndarray | None:
    """Orthonormal columns, [hidden size, dim], where the sketch is ``pca``."""
    if spec.sketch.kind != "pca":
        return None
    return orthonormal(spec.teacher.hidden_size, spec.sketch.dim)


def orthonormal(width: int, dim: int) -> np.ndarray:
    """A reflection's first columns, [width, dim]: the same numbers on every machine."""
    v = (np.arange(width, dtype=np.float64) * 7 % 11 + 1)[:, None]
    reflection: np.ndarray = np.eye(width) - 2 * v @ v.T / (v.T @ v)
    return reflection[:, :dim].astype(np.float32)


def pca_sketch(**changes: Any) -> SketchSpec:
    """A sketch of 8 principal components of 16."""
    sha256 = projection_sha256(orthonormal(16, 8))
    fields: dict[str, Any] = {"kind": "pca", "dim": 8, "projection_sha256": sha256}
    return SketchSpec(**(fields | changes))


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
        "targets": top_k_targets(),
        "sketch": SketchSpec(kind="rademacher", dim=8)
        if with_sketch
        else SketchSpec(kind="none", dim=0),
        "sequence_length": 12,
        "validation_every": 3,
        "rows_per_batch": 2,
        "seed": 7,
        "ranks_sha256": sample_ranks().sha256,
    }
    return CacheSpec(**(fields | changes))


def sample_row(seed: int, spec: CacheSpec) -> Row:
    """A row that keeps every rule of the format; some rows have documents that start inside."""
    random = np.random.default_rng(seed)
    num_positions, targets = spec.sequence_length, spec.targets
    top_k = 5 if targets.kept is None else targets.kept.top_k
    num_nodes = 1 if targets.kept is None else len(targets.kept.inverse_temperatures)
    starts = np.flatnonzero(random.random(num_positions) < 0.2).astype(np.int32) + 1
    num_kept = random.integers(1, top_k + 1, num_positions).astype(np.uint16)
    num_kept[starts - 1] = 0
    ids = [random.choice(spec.teacher.vocab_size, n, replace=False) for n in num_kept]
    gaps = [np.cumsum(np.r_[0.0, random.exponential(1.5, n - 1)]) for n in num_kept if n]
    tail = -np.sort(random.exponential(4.0, (num_positions, num_nodes)), axis=1)
    tail[random.random(num_positions) < 0.2] = -np.inf
    counts = None
    if targets.kind == "sampled":
        all_counts = [_draws(random, targets.sampling.num_draws, int(n)) for n in num_kept if n]
        counts = np.concatenate([*all_counts, []]).astype(np.uint16)
        gaps = [np.log(of_position[0] / of_position) for of_position in all_counts]
        tail[:] = -np.inf
    token_ids = random.integers(0, spec.teacher.vocab_size, num_positions + 1).astype(np.int32)
    shape = (num_positions, spec.sketch.num_states, spec.sketch.dim)
    has_sketch = spec.sketch.kind != "none"
    sketch = random.normal(size=shape).astype(np.float32) if has_sketch else None
    coefficients = None
    if targets.hidden is not None:
        spread = np.arange(targets.hidden.num_components, 0, -1)
        values = np.rint(random.normal(0, spread, (num_positions, len(spread))))
        coefficients = values.astype(np.int16)
    draws = _tail_draws(random, spec, ids, gaps, num_kept, ~np.isneginf(tail[:, -1]))
    next_logprob = -random.exponential(2.0, num_positions).astype(np.float32)
    moment_coefficients = None
    if targets.moment is not None:
        spread = np.arange(targets.moment.num_components, 0, -1)
        values = np.rint(random.normal(0, spread, (num_positions, len(spread))))
        moment_coefficients = values.astype(np.int16)
    kept_ids = KeptIds(
        num_ids=num_kept,
        ids=np.concatenate([*ids, []]).astype(np.int32),
        gaps=np.concatenate([*gaps, []]).astype(np.float32),
        counts=counts,
        draws=draws,
        tail_log_mass=tail.astype(np.float32),
        next_logprob=next_logprob,
    )
    return Row(
        token_ids=token_ids,
        document_starts=starts,
        kept_ids=None if targets.kind == "hidden" else kept_ids,
        coefficients=coefficients,
        moment_coefficients=moment_coefficients,
        sketch=sketch,
    )


def _tail_draws(
    random: np.random.Generator,
    spec: CacheSpec,
    kept_ids: list[np.ndarray],
    gaps: list[np.ndarray],
    num_kept: np.ndarray,
    is_left_out: np.ndarray,
) -> TailSamples | None:
    """Draws of ids that are not kept, at positions that leave some out, in any order."""
    if spec.targets.kind != "top_k+sampled":
        return None
    num_draws = spec.targets.sampling.num_draws
    num_ids = np.zeros(spec.sequence_length, np.uint16)
    drawn = [(np.zeros(0), np.zeros(0), np.zeros(0))]
    last_gaps = iter(of_position[-1] for of_position in gaps)
    for t in np.flatnonzero(num_kept):
        last_gap = next(last_gaps)
        others = np.setdiff1d(np.arange(spec.teacher.vocab_size), kept_ids[t])
        if not is_left_out[t]:
            continue
        num_ids[t] = random.integers(1, min(num_draws, len(others)) + 1)
        ids = random.choice(others, num_ids[t], replace=False)
        counts = _draws(random, num_draws, len(ids))
        drawn.append((ids, counts, last_gap + random.exponential(3.0, len(ids))))
    ids, counts, gaps_of_ids = (np.concatenate(column) for column in zip(*drawn, strict=True))
    return TailSamples(
        num_ids=num_ids,
        ids=ids.astype(np.int32),
        counts=counts.astype(np.uint16),
        gaps=gaps_of_ids.astype(np.float32),
    )


def _draws(random: np.random.Generator, num_draws: int, num_ids: int) -> np.ndarray:
    """How often each of some ids is drawn, the most frequent first; each at least once."""
    extra = random.multinomial(num_draws - num_ids, random.dirichlet(np.ones(num_ids)))
    counts: np.ndarray = np.sort(1 + extra)[::-1]
    return counts


def top_k_targets(**changes: Any) -> TargetSpec:
    """Targets of 5 ids at most; ``changes`` replace fields of ``KeptLogits``."""
    return TargetSpec(kind="top_k", kept=_kept_logits(**changes))


def sampled_targets(**changes: Any) -> TargetSpec:
    """Targets of 50 draws; ``changes`` replace fields of ``Draws``."""
    fields: dict[str, Any] = {"num_draws": 50, "inverse_temperature": 1.0}
    return TargetSpec(kind="sampled", draws=Draws(**(fields | changes)))


def drawn_targets(*, kept: dict[str, Any] | None = None, **changes: Any) -> TargetSpec:
    """Targets of 5 ids at most, and 9 draws of the others; ``changes`` replace fields of
    ``Draws``."""
    fields: dict[str, Any] = {"num_draws": 9, "inverse_temperature": 0.5}
    return TargetSpec(
        kind="top_k+sampled",
        kept=_kept_logits(**(kept or {})),
        draws=Draws(**(fields | changes)),
    )


def hidden_targets(**changes: Any) -> TargetSpec:
    """Targets of 6 coefficients; ``changes`` replace fields of ``CodedStates``."""
    transform = sample_transform()
    fields: dict[str, Any] = {
        "max_kl": 0.05,
        "step": 0.125,
        "quantization": "nearest",
        "num_components": len(transform.analysis),
        "num_symbols": transform.code.num_symbols,
        "num_classes": transform.code.num_classes,
        "num_raw_bits": transform.code.num_raw_bits,
        "self_kl": (0.05, 0.04, 0.03),
        "transform_sha256": transform.sha256,
    }
    return TargetSpec(kind="hidden", hidden=CodedStates(**(fields | changes)))


def top_k_hidden_targets(*, kept: dict[str, Any] | None = None, **changes: Any) -> TargetSpec:
    """Targets of 5 ids at most, and 6 coefficients; ``changes`` replace fields of
    ``CodedStates``."""
    hidden = hidden_targets(**changes).hidden
    return TargetSpec(kind="top_k+hidden", kept=_kept_logits(**(kept or {})), hidden=hidden)


def with_moment(targets: TargetSpec, **changes: Any) -> TargetSpec:
    """``targets`` with 5 coefficients of the tail's moment in 2 directions; ``changes`` replace
    fields of ``TailMoment``."""
    moment = sample_moment()
    fields: dict[str, Any] = {
        "dim": len(moment.basis),
        "step": 0.125,
        "num_components": len(moment.transform.analysis),
        "num_symbols": moment.transform.code.num_symbols,
        "num_classes": moment.transform.code.num_classes,
        "num_raw_bits": moment.transform.code.num_raw_bits,
        "transform_sha256": moment.sha256,
    }
    return replace(targets, moment=TailMoment(**(fields | changes)))


def _kept_logits(**changes: Any) -> KeptLogits:
    fields: dict[str, Any] = {
        "top_k": 5,
        "keep_mass": 0.9,
        "inverse_temperatures": (0.5, 0.75, 1.0),
    }
    return KeptLogits(**(fields | changes))


TARGETS = {
    "top_k": top_k_targets(),
    "sampled": sampled_targets(),
    "top_k+sampled": drawn_targets(),
    "hidden": hidden_targets(),
    "top_k+hidden": top_k_hidden_targets(),
    "top_k with moment": with_moment(top_k_targets()),
    "top_k+sampled with moment": with_moment(drawn_targets()),
}
"""One of each kind, and those that may have the tail's moment with it."""


def with_context(row: Row, is_context: np.ndarray) -> Row:
    """``row`` with these positions, [T], as context, and without the ids that it keeps of them."""
    row = replace(row, is_context=is_context)
    if row.kept_ids is None:
        return row
    kept, draws = row.kept, row.kept.draws
    stays = np.repeat(~is_context, kept.num_ids)
    if draws is not None:
        is_drawn = np.repeat(~is_context, draws.num_ids)
        draws = replace(
            draws,
            num_ids=np.where(is_context, 0, draws.num_ids).astype(np.uint16),
            ids=draws.ids[is_drawn],
            counts=draws.counts[is_drawn],
            gaps=draws.gaps[is_drawn],
        )
    kept = replace(
        kept,
        num_ids=np.where(is_context, 0, kept.num_ids).astype(np.uint16),
        ids=kept.ids[stays],
        gaps=kept.gaps[stays],
        counts=None if kept.counts is None else kept.counts[stays],
        draws=draws,
    )
    return replace(row, kept_ids=kept)


def unit_rows(unit: int, spec: CacheSpec) -> list[Row]:
    """The rows of ``unit``."""
    return [sample_row(1000 * unit + index, spec) for index in range(ROWS_OF_UNIT[unit])]


_rows_to_write = cache(unit_rows)


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
            _rows_to_write(unit, writer.spec),
            num_documents=4,
            num_skipped_documents=unit,
            num_dropped_tokens=5,
            corpus_position=f"a.parquet, documents {4 * unit} to {4 * unit + 3}",
        )


def write_sample_cache(path: Path | str, spec: CacheSpec | None = None) -> CacheSpec:
    """A complete cache of four units: validation, train, an empty one, validation."""
    spec = spec or sample_spec()
    writer = CacheWriter.create_or_open(path, spec, sample_shared(spec))
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
    data = path.read_bytes()
    fields = sealed_json.unseal(data, path, "", json.loads(data)["format_version"])
    change(fields)
    path.write_bytes(sealed_json._sealed(fields))


def contents(root: Path) -> dict[str, str]:
    """The hash of every file of a cache."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def assert_same_row(found: Row, expected: Row) -> None:
    """Every array of two rows is equal, bit by bit."""
    assert_same_arrays(vars(found), vars(expected))


def assert_same_arrays(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """So are those of their kept ids and draws."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        if isinstance(array, KeptIds | TailSamples):
            assert_same_arrays(vars(found[name]), vars(array))
        else:
            np.testing.assert_array_equal(found[name], array, err_msg=name)


def assert_decoded(found: Row, given: Row, spec: CacheSpec) -> None:
    """``found`` is ``given`` up to the errors that the format promises not to exceed."""
    scored = given.scored()
    for name in ("token_ids", "document_starts"):
        np.testing.assert_array_equal(getattr(found, name), getattr(given, name), err_msg=name)
    np.testing.assert_array_equal(found.scored(), scored)
    if given.coefficients is not None:
        assert found.coefficients is not None
        np.testing.assert_array_equal(found.coefficients[scored], given.coefficients[scored])
        assert not found.coefficients[~scored].any()
    assert (found.moment_coefficients is None) == (given.moment_coefficients is None)
    if given.moment_coefficients is not None and found.moment_coefficients is not None:
        expected = np.where(scored[:, None], given.moment_coefficients, 0)
        np.testing.assert_array_equal(found.moment_coefficients, expected)
    if given.kept_ids is not None:
        _assert_kept_decoded(found.kept, given.kept, scored, spec)
    if given.sketch is None:
        assert found.sketch is None
    else:
        assert found.sketch is not None
        errors = np.abs(found.sketch.astype(np.float64) - given.sketch)
        assert (errors[scored] <= _sketch_bound(given.sketch[scored], spec.sketch.dtype)).all()
        assert not found.sketch[~scored].any()


def _assert_kept_decoded(
    found: KeptIds, given: KeptIds, scored: np.ndarray, spec: CacheSpec
) -> None:
    np.testing.assert_array_equal(found.num_ids, given.num_ids)
    if spec.targets.kind == "sampled":
        _assert_counts(found, given, scored)
    else:
        assert found.counts is None
        _assert_probabilities(found, given, scored, spec)
    if given.draws is None:
        assert found.draws is None
    else:
        assert found.draws is not None
        _assert_draws(found, given, spec)
    half_step = spec.targets.log_step / 2
    np.testing.assert_allclose(
        found.next_logprob[scored], given.next_logprob[scored], rtol=1e-6, atol=half_step
    )
    assert not found.next_logprob[~scored].any()
    assert not found.tail_log_mass[~scored].any()


def _sketch_bound(sketch: np.ndarray, dtype: str) -> np.ndarray:
    """The most that each number may be off by, of positions, [T, L, d]."""
    largest = np.abs(sketch).max(axis=2, keepdims=True)
    bound: np.ndarray = {
        # Half a scale, which is rounded up to 8 significant bits.
        "int8": largest / 254 * (1 + 2.0**-7) + 1e-30,
        "float16": np.abs(sketch) * 2.0**-11 + 2.0**-25,
        "float32": np.zeros_like(sketch),
    }[dtype]
    return bound


def by_position(kept: KeptIds, values: np.ndarray) -> list[dict[int, float]]:
    """What ``values``, [N], say of each kept id, position by position."""
    ends = np.cumsum(kept.num_ids, dtype=np.int64)
    pairs = list(zip(kept.ids.tolist(), values.tolist(), strict=True))
    return [
        dict(pairs[end - count : end])
        for end, count in zip(ends.tolist(), kept.num_ids.tolist(), strict=True)
    ]


def _assert_counts(found: KeptIds, given: KeptIds, scored: np.ndarray) -> None:
    assert found.counts is not None
    assert given.counts is not None
    assert by_position(found, found.counts) == by_position(given, given.counts)
    for counts, gaps in zip(
        by_position(found, found.counts), by_position(found, found.gaps), strict=True
    ):
        most = max(counts.values(), default=1)
        for token_id, count in counts.items():
            assert abs(gaps[token_id] - np.log(most / count)) < 1e-6
    assert np.isneginf(found.tail_log_mass[scored]).all()


def _assert_draws(found: KeptIds, given: KeptIds, spec: CacheSpec) -> None:
    """Same ids and counts; log-probabilities off by 1/16 nat at most, unless they are too deep."""
    num_levels = spec.targets.logits.num_levels
    assert found.draws is not None
    assert given.draws is not None
    np.testing.assert_array_equal(found.draws.num_ids, given.draws.num_ids)
    kept_ends = np.cumsum(given.num_ids, dtype=np.int64)
    ends = np.cumsum(found.draws.num_ids, dtype=np.int64)
    for t in np.flatnonzero(found.draws.num_ids):
        drawn = slice(ends[t] - found.draws.num_ids[t], ends[t])
        columns = [
            {
                int(i): (int(count), float(gap))
                for i, count, gap in zip(
                    draws.ids[drawn], draws.counts[drawn], draws.gaps[drawn], strict=True
                )
            }
            for draws in (found.draws, given.draws)
        ]
        assert columns[0].keys() == columns[1].keys()
        assert (np.diff(found.draws.gaps[drawn]) >= 0).all()
        gaps = given.gaps[kept_ends[t] - given.num_ids[t] : kept_ends[t]].astype(np.float64)
        given_top = -np.log(np.exp(-gaps).sum() + np.exp(float(given.tail_log_mass[t, -1])))
        found_top = 4 * np.log(_decoded_root(given_top, num_levels))
        level = np.rint((1 - np.exp((given_top - gaps[-1]) / 4)) * num_levels)
        deepest = 4 * np.log(min(1, (num_levels - level + 0.5) / num_levels)) - 255 / 8
        for token_id, (count, gap) in columns[1].items():
            assert columns[0][token_id][0] == count
            logprob = found_top - columns[0][token_id][1]
            assert abs(logprob - max(given_top - gap, deepest)) <= 1 / 16 + 1e-4


def _decoded_root(logprob: float, num_levels: int) -> float:
    """The fourth root of a probability after it was rounded to a level."""
    level = np.rint((1 - np.exp(logprob / 4)) * num_levels)
    return float(1 - level / num_levels if level < num_levels else 0.25 / num_levels)


def _assert_probabilities(
    found: KeptIds, given: KeptIds, scored: np.ndarray, spec: CacheSpec
) -> None:
    """Same ids; p^(1/4) off by half a step at most, and log-masses by half of theirs."""
    num_levels = spec.targets.logits.num_levels
    nodes = np.array(spec.targets.inverse_temperatures)
    found_gaps, given_gaps = by_position(found, found.gaps), by_position(given, given.gaps)
    for t in np.flatnonzero(scored):
        assert found_gaps[t].keys() == given_gaps[t].keys()
        tail = given.tail_log_mass[t].astype(np.float64)
        gaps = np.array(list(given_gaps[t].values()))
        log_z = np.log(np.exp(-gaps).sum() + np.exp(tail[-1]))
        decoded_largest = _decoded_root(-log_z, num_levels)
        values = list(found_gaps[t].values())
        assert values == sorted(values)
        assert values[0] == 0
        for token_id, gap in given_gaps[t].items():
            root = decoded_largest * np.exp(-found_gaps[t][token_id] / 4)
            assert abs(root - np.exp((-gap - log_z) / 4)) <= (0.5 + 1e-4) / num_levels
        decoded = found.tail_log_mass[t] + 4 * np.log(decoded_largest) * nodes
        np.testing.assert_allclose(
            decoded, tail - log_z * nodes, rtol=1e-6, atol=spec.targets.log_step / 2 + 1e-5
        )
