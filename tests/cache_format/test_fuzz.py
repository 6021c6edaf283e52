"""Damaged bytes whose hashes are right: a named error or a row that keeps the rules, never else.

Cells, record batches and sealed files are mutated at random (the same way every time) and given to
the decoders as though their hashes had been compared. Each group of inputs runs in a child process
with a limit on memory and on time: a crash, a hang or a hunger for memory is a failed test, not a
dead run.
"""

import faulthandler
import hashlib
import json
import multiprocessing
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zstandard

import cache_format
from cache_format.codec.row import KeptIds
from cache_format.codec.row_codec import Row, decode_row, encode_row
from cache_format.codec.samples import TailSamples
from cache_format.coding import zstd_cells
from cache_format.coding.bits import decode_numbers, encode_numbers, with_length
from cache_format.coding.coefficients import MAX_VALUE
from cache_format.metadata import sealed_json
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.sketch import SketchSpec
from cache_format.shard import encode_shard, open_batch, row_of_batch
from cache_format.tables.hidden_transform import transform_from_bytes
from cache_format.tables.principal_components import projection_bytes, projection_from_bytes
from cache_format.tables.shared_files import SharedFiles, files_of
from cache_format.tables.tail_moment import moment_from_bytes
from cache_format.tables.vocabulary_ranks import RankTable
from tests.support.sample_cache import (
    drawn_targets,
    hidden_targets,
    pca_sketch,
    reseal,
    sample_moment,
    sample_projection,
    sample_ranks,
    sample_row,
    sample_shared,
    sample_spec,
    sample_transform,
    sampled_targets,
    top_k_hidden_targets,
    with_context,
    with_moment,
    write_sample_cache,
)

SECONDS_PER_INPUT = 5
MAX_BYTES_MORE = 2**28
"""What a child may allocate above what it had at its start; a sample row takes kilobytes."""

SPECS = [
    sample_spec(),
    sample_spec(sketch=SketchSpec(kind="rademacher", dim=8, dtype="float16")),
    sample_spec(sketch=SketchSpec(kind="rademacher", dim=8, dtype="float32")),
    sample_spec(targets=sampled_targets(), sketch=SketchSpec(kind="none", dim=0)),
    sample_spec(targets=drawn_targets(), sketch=SketchSpec(kind="none", dim=0)),
    sample_spec(targets=drawn_targets(num_draws=1), sketch=pca_sketch(hidden_states="last")),
    sample_spec(sketch=SketchSpec(kind="rademacher", dim=8, hidden_states="each:1,2")),
    sample_spec(targets=top_k_hidden_targets(), sketch=SketchSpec(kind="none", dim=0)),
    sample_spec(targets=with_moment(drawn_targets()), sketch=SketchSpec(kind="none", dim=0)),
    sample_spec(targets=hidden_targets(), sketch=SketchSpec(kind="none", dim=0)),
]
SHARED = [sample_shared(spec) for spec in SPECS]
HIDDEN = SPECS[-1]
Input = Callable[[], None]


def _mutated(data: bytes, random: np.random.Generator) -> bytes:
    """One to three changes: bits, bytes, pieces cut out, doubled or put in."""
    changed = bytearray(data)
    for _ in range(random.integers(1, 4)):
        at = int(random.integers(0, len(changed) + 1))
        length = int(random.integers(1, 9))
        kind = random.integers(0, 6)
        if kind <= 1 and at < len(changed):
            changed[at] ^= 1 << int(random.integers(0, 8))
        elif kind == 2:
            changed[at : at + length] = random.bytes(len(changed[at : at + length]))
        elif kind == 3:
            del changed[at : at + length]
        elif kind == 4:
            changed[at:at] = changed[at : at + length]
        else:
            edge = [0, 1, 0x7F, 0x80, 0xFF][int(random.integers(0, 5))]
            changed[at : at + length] = bytes([edge]) * int(random.integers(0, 9))
    return bytes(changed)


def _mutated_cell(cell: bytes, random: np.random.Generator) -> bytes:
    """Half of the time within a frame, so that what is wrong is not zstd's but ours to find."""
    if random.random() < 0.4 or len(cell) < 8:
        return _mutated(cell, random)
    if zstandard.FRAME_HEADER not in (cell[:4], cell[4:8]):
        return _mutated_stream(cell, random)
    has_length = cell[:4] != zstandard.FRAME_HEADER
    end = 4 + int.from_bytes(cell[:4], "little") if has_length else len(cell)
    frame = cell[4 * has_length : end]
    content = bytearray(zstd_cells.decompress(frame, zstandard.frame_content_size(frame)))
    for _ in range(random.integers(1, 3)):
        content[int(random.integers(0, len(content)))] = int(random.integers(0, 256))
    changed = zstd_cells.compress(bytes(content))
    return (with_length(changed) if has_length else changed) + cell[end:]


def _mutated_stream(cell: bytes, random: np.random.Generator) -> bytes:
    """Coefficients whose states, words or rest are others; the length of the states is right."""
    end = 4 + int.from_bytes(cell[:4], "little")
    count = zstandard.frame_content_size(cell[8:end])
    if not count or random.random() < 0.5:
        return cell[:end] + _mutated(cell[end:], random)
    states = decode_numbers(cell[4:end], count)
    for _ in range(random.integers(1, 4)):
        changed = int(random.integers(0, count))
        states[changed] = random.integers(0, 2 ** int(random.integers(17, 33)))
    if random.random() < 0.1:
        states = states[: int(random.integers(0, count))]
    return with_length(encode_numbers(states)) + cell[end:]


def _accepts(decode: Callable[[], Row], spec: CacheSpec) -> None:
    """``decode`` raises ValueError, or gives a row within all bounds."""
    try:
        row = decode()
    except ValueError as error:
        assert str(error)  # noqa: PT017
        return
    num_positions = spec.sequence_length
    assert row.token_ids.shape == (num_positions + 1,)
    assert ((row.token_ids >= 0) & (row.token_ids < spec.teacher.vocab_size)).all()
    if row.is_context is not None:
        assert row.is_context.shape == (num_positions,)
        assert row.is_context.any()
        assert not row.scored()[row.is_context].any()
    assert (row.kept_ids is None) == (spec.targets.kind == "hidden")
    if row.kept_ids is not None:
        _accepts_kept_ids(row.kept, row.scored(), spec)
    for coefficients, part in (
        (row.coefficients, spec.targets.hidden),
        (row.moment_coefficients, spec.targets.moment),
    ):
        assert (coefficients is None) == (part is None)
        if part is not None and coefficients is not None:
            assert coefficients.shape == (num_positions, part.num_components)
            assert (np.abs(coefficients.astype(int)) <= MAX_VALUE).all()
            assert not coefficients[~row.scored()].any()
    if row.sketch is not None:
        assert row.sketch.shape == (num_positions, spec.sketch.num_states, spec.sketch.dim)
        assert np.isfinite(row.sketch).all()


def _accepts_kept_ids(kept: KeptIds, scored: np.ndarray, spec: CacheSpec) -> None:
    targets, num_nodes = spec.targets, len(spec.targets.inverse_temperatures)
    most = targets.sampling.num_draws if targets.kept is None else targets.kept.top_k
    assert kept.ids.shape == kept.gaps.shape == (int(kept.num_ids.sum()),)
    assert ((kept.ids >= 0) & (kept.ids < spec.teacher.vocab_size)).all()
    assert (kept.num_ids <= most).all()
    assert ((kept.num_ids > 0) == scored).all()
    assert (np.isfinite(kept.gaps) & (kept.gaps >= 0)).all()
    assert kept.tail_log_mass.shape == (spec.sequence_length, num_nodes)
    assert (kept.tail_log_mass < np.inf).all()
    assert ((kept.next_logprob <= 0) & (kept.next_logprob >= -65_504)).all()
    assert (kept.counts is None) == (targets.kind != "sampled")
    if kept.counts is not None:
        assert (kept.counts >= 1).all()
        assert kept.counts.sum() == targets.sampling.num_draws * scored.sum()
    assert (kept.draws is None) == (targets.kind != "top_k+sampled")
    if kept.draws is not None:
        has_tail = scored & ~np.isneginf(kept.tail_log_mass[:, -1])
        _accepts_draws(kept.draws, has_tail, spec)


def _accepts_draws(draws: TailSamples, has_tail: np.ndarray, spec: CacheSpec) -> None:
    assert draws.num_ids.shape == (spec.sequence_length,)
    assert ((draws.num_ids > 0) == has_tail).all()
    assert draws.ids.shape == draws.counts.shape == draws.gaps.shape == (draws.num_ids.sum(),)
    assert ((draws.ids >= 0) & (draws.ids < spec.teacher.vocab_size)).all()
    assert np.isfinite(draws.gaps).all()
    assert (draws.counts >= 1).all()
    position = np.repeat(np.arange(spec.sequence_length), draws.num_ids)
    sums = np.bincount(position, draws.counts, spec.sequence_length)
    assert (sums == np.where(has_tail, spec.targets.sampling.num_draws, 0)).all()


def _row(seed: int, spec: CacheSpec) -> Row:
    """A row of ``sample_row``; of an odd seed some positions are context, of a seed above 1 there
    are coefficients of any size."""
    row = sample_row(seed, spec)
    if row.coefficients is not None and seed > 1:
        large = row.coefficients * np.random.default_rng(seed).integers(1, 2000, 6)
        row = replace(row, coefficients=large.astype(np.int16))
    if row.moment_coefficients is not None and seed > 1:
        large = row.moment_coefficients * np.random.default_rng(seed).integers(1, 2000, 5)
        row = replace(row, moment_coefficients=large.astype(np.int16))
    is_context = np.random.default_rng(seed).random(spec.sequence_length) < 0.4
    return with_context(row, is_context) if seed % 2 else row


def _binary_cells(row: Row, spec: CacheSpec) -> dict[str, bytes]:
    encoded = encode_row(row, spec, sample_shared(spec))
    return {name: cell for name, cell in encoded.items() if isinstance(cell, bytes)}


def _cells(num_inputs: int) -> Iterator[Input]:
    random = np.random.default_rng(1)
    rows = [
        (spec, shared, row, _binary_cells(row, spec))
        for spec, shared in zip(SPECS, SHARED, strict=True)
        for row in (_row(seed, spec) for seed in range(4))
    ]
    for number in range(num_inputs):
        spec, shared, row, cells = rows[number % len(rows)]
        name = list(cells)[int(random.integers(0, len(cells)))]
        if "tail_moment" in cells and random.random() < 0.5:
            name = "tail_moment"
        elif "drawn" in cells and random.random() < 0.4:
            name = "drawn"
        elif "hidden" in cells and random.random() < 0.7:
            name = "hidden"
        elif cells["context"] and random.random() < 0.1:
            name = "context"
        starts = row.document_starts
        if random.random() < 0.1:
            starts = random.integers(-2, 15, int(random.integers(0, 4))).astype(np.int32)
        changed = cells | {name: _mutated_cell(cells[name], random)}

        def run(
            spec: CacheSpec = spec,
            shared: SharedFiles = shared,
            changed: dict[str, bytes] = changed,
            starts: np.ndarray = starts,
        ) -> None:
            _accepts(lambda: decode_row(changed, starts, spec, shared), spec)

        yield run


def _batches(num_inputs: int) -> Iterator[Input]:
    random = np.random.default_rng(2)
    shards = []
    for spec, shared in zip(SPECS, SHARED, strict=True):
        shard = encode_shard([_row(seed, spec) for seed in range(2)], spec, shared, 1)
        data = shard.data.to_pybytes()
        shards.append((spec, shared, [data[s.offset :][: s.length] for s in shard.segments]))
    for number in range(num_inputs):
        spec, shared, (schema, targets, *sketch) = shards[number % len(shards)]
        if random.random() < 0.2:
            schema = _mutated(schema, random)
        else:
            targets = _mutated(targets, random)
        num_absent = len(sketch[0]) if sketch and random.random() < 0.5 else 0
        batch = targets if num_absent else b"".join([targets, *sketch])

        def run(
            spec: CacheSpec = spec,
            shared: SharedFiles = shared,
            schema: bytes = schema,
            batch: bytes = batch,
            num_absent: int = num_absent,
        ) -> None:
            try:
                opened = open_batch(schema, batch, num_absent, 1, spec)
            except ValueError:
                return
            for index in range(min(opened.num_rows, 4)):
                _accepts(lambda index=index: row_of_batch(opened, index, spec, shared), spec)  # type: ignore[misc]

        yield run


_VALUES: list[object] = [
    0,
    1,
    -1,
    2**31,
    2**63,
    10**30,
    1.5,
    1e308,
    True,
    None,
    "",
    "x",
    "2.0",
    "3.0",
    [],
    {},
    [[]],
]


def _changed_value(fields: object, random: np.random.Generator) -> None:
    """Replace, remove or add one value somewhere inside a JSON object."""
    while isinstance(fields, dict | list) and fields:
        keys = list(fields) if isinstance(fields, dict) else list(range(len(fields)))
        key = keys[int(random.integers(0, len(keys)))]
        inner = fields[key]
        if isinstance(inner, dict | list) and inner and random.random() < 0.8:
            fields = inner
            continue
        if random.random() < 0.15:
            del fields[key]
        elif random.random() < 0.3 and isinstance(inner, int):
            fields[key] = inner + int(random.integers(-2, 3))
        else:
            fields[key] = _VALUES[int(random.integers(0, len(_VALUES)))]
        return


def _files(root: Path, num_inputs: int) -> Iterator[Input]:
    """Manifest, spec, receipts and the table of ids, changed and sealed again, all hashes right."""
    random = np.random.default_rng(3)
    names = ["manifest.json", "receipts/00001.json", "receipts/teacher.json"]
    names += files_of(cache_format.open(root).spec)
    whole = {name: (root / name).read_bytes() for name in names}
    for number in range(num_inputs):
        name = names[number % len(names)]
        seed = int(random.integers(0, 2**32))

        def run(name: str = name, seed: int = seed) -> None:
            random = np.random.default_rng(seed)
            try:
                _damage(root, name, random)
                _read_everything(root)
            finally:
                for each, data in whole.items():
                    (root / each).write_bytes(data)

        yield run


def _damage(root: Path, name: str, random: np.random.Generator) -> None:
    path = root / name
    if name.endswith(".bin") or random.random() < 0.3:
        path.write_bytes(_mutated(path.read_bytes(), random))
    else:
        fields = sealed_json.unseal(path.read_bytes(), path, "")
        _changed_value(fields, random)
        path.write_bytes(sealed_json._sealed(fields))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    def adopt(fields: dict) -> None:  # type: ignore[type-arg]
        if name == "receipts/teacher.json":
            fields["teacher_receipt_sha256"] = digest
        if name == "receipts/00001.json":
            fields["shards"][1]["receipt_sha256"] = digest

    if name == "manifest.json" and random.random() < 0.7:
        try:
            fields = json.loads(path.read_bytes())
            spec = CacheSpec.from_json(fields["spec"])
        except (ValueError, KeyError, TypeError):
            return
        fields.pop("seal", None)
        path.write_bytes(sealed_json._sealed(fields | {"cache_id": spec.cache_id}))
    elif name != "manifest.json":
        reseal(root / "manifest.json", adopt)


def _read_everything(root: Path) -> None:
    try:
        cache = cache_format.open(root, allow_incomplete=True)
        cache.attachments()
        assert cache.transform is None or np.isfinite(cache.transform.synthesis).all()
        assert cache.projection is None or np.isfinite(cache.projection).all()
    except ValueError:
        return
    for split in ("train", "validation"):
        for index in range(min(cache.num_rows(split), 3)):
            _accepts(lambda split=split, index=index: cache.read_row(split, index)[1], cache.spec)  # type: ignore[misc]


def _tables(num_inputs: int) -> Iterator[Input]:
    random = np.random.default_rng(4)
    for _ in range(num_inputs):
        data = _mutated(sample_ranks().to_bytes(), random)

        def run(data: bytes = data) -> None:
            try:
                table = RankTable.from_bytes(data, 40)
            except ValueError:
                return
            assert sorted(table.ids_by_rank.tolist()) == list(range(40))

        yield run


def _projections(num_inputs: int) -> Iterator[Input]:
    random = np.random.default_rng(5)
    spec = sample_spec(sketch=pca_sketch())
    whole = sample_projection(spec)
    assert whole is not None
    for _ in range(num_inputs):
        data = _mutated(projection_bytes(whole), random)

        def run(data: bytes = data) -> None:
            try:
                found = projection_from_bytes(data, spec)
            except ValueError:
                return
            assert np.abs(found.T @ found - np.eye(8)).max() <= 2e-3

        yield run


def _transforms(num_inputs: int) -> Iterator[Input]:
    """Each that is accepted decodes a cell of the right one to a row, or refuses it."""
    random = np.random.default_rng(6)
    whole = sample_transform().to_bytes()
    num_floats = 16 + 2 * 6 * 16
    row = sample_row(0, HIDDEN)
    cells = _binary_cells(row, HIDDEN)
    for _ in range(num_inputs):
        data = _mutated(whole, random)
        if random.random() < 0.6:  # in the code of coefficients, the size as it was
            changed = bytearray(whole)
            for _ in range(random.integers(1, 4)):
                at = int(random.integers(4 * num_floats, len(whole)))
                changed[at] = (changed[at] + int(random.integers(-2, 3))) % 256
            data = bytes(changed)
        if random.random() < 0.5:  # two frequencies of one symbol, their sum as it was
            place = 4 * num_floats + 6 + 512 * int(random.integers(0, 11))
            frequencies = np.frombuffer(whole, "<u2", 256, place).copy()
            first, second = random.choice(np.flatnonzero(frequencies), 2)
            moved = min(int(random.integers(1, 300)), int(frequencies[first]))
            frequencies[first] -= moved
            frequencies[second] += moved
            data = whole[:place] + frequencies.tobytes() + whole[place + 512 :]

        def run(data: bytes = data) -> None:
            try:
                transform = transform_from_bytes(data, HIDDEN)
            except ValueError:
                return
            states = transform.states(np.full((2, 6), MAX_VALUE, np.int16))
            assert np.isfinite(states).all()
            shared = replace(sample_shared(HIDDEN), transform=transform)
            _accepts(lambda: decode_row(cells, row.document_starts, HIDDEN, shared), HIDDEN)

        yield run


def _moments(num_inputs: int) -> Iterator[Input]:
    """Each that is accepted gives moments that are numbers, and decodes a cell or refuses it."""
    random = np.random.default_rng(7)
    whole, spec = sample_moment().to_bytes(), sample_spec(targets=with_moment(drawn_targets()))
    row = sample_row(0, spec)
    cells = _binary_cells(row, spec)
    for _ in range(num_inputs):
        data = _mutated(whole, random)
        if random.random() < 0.6:  # the size as it was
            changed = bytearray(whole)
            for _ in range(random.integers(1, 4)):
                at = int(random.integers(0, len(whole)))
                changed[at] = (changed[at] + int(random.integers(-2, 3))) % 256
            data = bytes(changed)

        def run(data: bytes = data) -> None:
            try:
                moment = moment_from_bytes(data, spec)
            except ValueError:
                return
            assert np.isfinite(moment.moments(np.full((2, 5), MAX_VALUE, np.int16))).all()
            shared = replace(sample_shared(spec), moment=moment)
            _accepts(lambda: decode_row(cells, row.document_starts, spec, shared), spec)

        yield run


def _child(pipe: Connection, inputs: Iterator[Input]) -> None:
    number = -1
    try:
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MAX_BYTES_MORE, resource.RLIM_INFINITY))
        started = time.monotonic()
        for number, run in enumerate(inputs):  # noqa: B007
            signal.alarm(SECONDS_PER_INPUT)  # its default action ends the process
            run()
        signal.alarm(0)
        pipe.send(f"{number + 1} inputs, {time.monotonic() - started:.1f} s")
    except BaseException:
        pipe.send(f"input {number}: {traceback.format_exc()}")


def _survives(inputs: Iterator[Input], num_inputs: int) -> None:
    """All inputs run in a child of their own, and none does what it must not."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(theirs, inputs))
    child.start()
    theirs.close()
    try:
        outcome = ours.recv()
    except EOFError:
        outcome = "no outcome"
    child.join()
    assert child.exitcode == 0, f"the child ended with {child.exitcode}: {outcome}"
    assert outcome.startswith(f"{num_inputs} inputs"), outcome


@pytest.mark.parametrize(
    "scale", [1, pytest.param(40, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_mutated_bytes_never_crash_or_decode_silently(scale: int, tmp_path: Path) -> None:
    """4,900 inputs by default, 196,000 in the slow test."""
    pa.set_cpu_count(1)
    spec = sample_spec(targets=drawn_targets(), sketch=pca_sketch())
    write_sample_cache(tmp_path / "cache", spec)
    write_sample_cache(tmp_path / "hidden", HIDDEN)
    for inputs, count in (
        (_cells(1900 * scale), 1900 * scale),
        (_batches(1400 * scale), 1400 * scale),
        (_files(tmp_path / "cache", 500 * scale), 500 * scale),
        (_files(tmp_path / "hidden", 200 * scale), 200 * scale),
        (_tables(200 * scale), 200 * scale),
        (_projections(200 * scale), 200 * scale),
        (_transforms(300 * scale), 300 * scale),
        (_moments(200 * scale), 200 * scale),
    ):
        _survives(inputs, count)


def test_the_fuzzer_detects_crashes_and_misbehaving_children(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of what the test above watches for makes it fail."""

    def crash() -> None:
        faulthandler.disable()
        os.kill(os.getpid(), signal.SIGSEGV)

    def wrong() -> None:
        row = sample_row(0, SPECS[0])
        ids = replace(row.kept, ids=np.zeros(1, np.int32))
        _accepts(lambda: replace(row, kept_ids=ids), SPECS[0])

    def other_error() -> None:
        _accepts(lambda: dict[int, Row]()[0], SPECS[0])

    def hungry() -> None:
        np.ones(2**30, np.uint8)

    monkeypatch.setattr(f"{__name__}.SECONDS_PER_INPUT", 1)
    for run, message in (
        (crash, "ended with -11"),
        (lambda: time.sleep(9), "ended with -14"),
        (wrong, "AssertionError"),
        (other_error, "KeyError"),
        (hungry, "MemoryError"),
    ):
        with pytest.raises(AssertionError, match=message):
            _survives(iter([run]), 1)
