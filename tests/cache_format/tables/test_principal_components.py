"""Rows without sketches: no byte of a sketch is read, and none that is damaged is in the way."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

import cache_format
from cache_format.errors import CorruptShardError
from cache_format.metadata import layout
from cache_format.metadata.receipt import Segment, read_receipt
from cache_format.metadata.spec import Split
from tests.support.sample_cache import assert_decoded, assert_same_row, sample_spec, unit_rows

SPEC = sample_spec()


def _sketch_segments(root: Path, unit: int) -> list[Segment]:
    cache = cache_format.open(root)
    segments = read_receipt(cache.storage, unit, SPEC, None).segments
    assert len(segments) > 1
    return list(segments[2::2])


def _overwrite_sketches(root: Path, unit: int) -> None:
    (path,) = (root / layout.SHARDS).glob(f"{unit:05d}-*")
    data = bytearray(path.read_bytes())
    for segment in _sketch_segments(root, unit):
        data[segment.offset : segment.offset + segment.length] = b"\xa5" * segment.length
    path.write_bytes(data)


def test_targets_are_readable_where_every_sketch_is_damaged(root: Path) -> None:
    for unit in (0, 1, 3):
        _overwrite_sketches(root, unit)
    cache = cache_format.open(root)
    splits: tuple[Split, ...] = ("train", "validation")
    for split in splits:
        given = [row for entry in cache.shards(split) for row in unit_rows(entry.unit, SPEC)]
        assert cache.num_rows(split) == len(given)
        for index, row in enumerate(given):
            with pytest.raises(CorruptShardError, match=r"bytes \d+ to \d+: expected SHA-256"):
                cache.read_row(split, index)
            _, found = cache.read_row(split, index, with_sketch=False)
            assert_decoded(found, replace(row, sketch=None), SPEC)


def test_a_shard_is_read_once_and_without_sketches_if_unwanted(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The schema and the targets of each batch, each byte once; with sketches all of these too."""
    cache = cache_format.open(root)
    entry = cache.shards("train")[0]
    segments = read_receipt(cache.storage, entry.unit, SPEC, None).segments
    sketches = [
        range(segment.offset, segment.offset + segment.length)
        for segment in _sketch_segments(root, entry.unit)
    ]
    ranges: list[range] = []
    pread = os.pread

    def spy(descriptor: int, length: int, offset: int) -> bytes:
        ranges.append(range(offset, offset + length))
        return pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", spy)
    for index in range(entry.num_rows):
        cache.read_row("train", index, with_sketch=False)
    assert ranges
    for read in ranges:
        assert not any(read.start < sketch.stop and sketch.start < read.stop for sketch in sketches)
    targets = sum(segment.length for segment in segments[1::2])
    assert sum(map(len, ranges)) == targets + 3 * segments[0].length

    ranges.clear()
    for index in range(entry.num_rows):
        cache.read_row("train", index)
    everything = sum(segment.length for segment in segments[1:])
    assert sum(map(len, ranges)) == everything + 3 * segments[0].length


def test_targets_are_the_same_with_and_without_principal_components(root: Path) -> None:
    cache = cache_format.open(root)
    for index in range(cache.num_rows("train")):
        _, whole = cache.read_row("train", index)
        _, targets = cache.read_row("train", index, with_sketch=False)
        assert whole.sketch is not None
        assert targets.sketch is None
        assert_same_row(targets, replace(whole, sketch=None))
