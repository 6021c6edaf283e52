"""One flipped bit, anywhere: named by verify, and never read as something else."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import cache_format
from cache_format.errors import CacheError, CorruptShardError
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.tools.verify import verify
from tests.support.sample_cache import (
    assert_same_row,
    drawn_targets,
    hidden_targets,
    pca_sketch,
    sample_spec,
    top_k_hidden_targets,
    write_sample_cache,
)

SPEC = sample_spec()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete cache, put back in order by every test."""
    root = tmp_path_factory.mktemp("damage") / "cache"
    write_sample_cache(root)
    return root


def _flipped(path: Path, positions: list[int], seed: int) -> Iterator[int]:
    """Flip one bit at each position in turn, and put it back afterwards."""
    whole = path.read_bytes()
    bits = random.Random(seed)
    try:
        for position in positions:
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bits.randrange(8)
            path.write_bytes(damaged)
            yield position
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("num_flips", [120, pytest.param(1200, marks=pytest.mark.slow)])
def test_a_flipped_bit_in_a_shard_is_detected(root: Path, num_flips: int) -> None:
    entry = cache_format.open(root).shards("train")[0]
    path = root / entry.file
    expected = [row for _, row in cache_format.open(root).iter_rows("train")]
    edges = [*range(8), *range(entry.num_bytes - 16, entry.num_bytes)]
    positions = edges + random.Random(0).sample(range(entry.num_bytes), num_flips)
    refused = 0
    for _ in _flipped(path, positions, seed=1):
        cache = cache_format.open(root)
        assert [problem.path for problem in verify(cache)] == [path]
        for index, row in enumerate(expected):
            try:
                _, found = cache.read_row("train", index)
            except CorruptShardError as error:
                refused += 1
                assert str(path) in str(error)  # noqa: PT017
            else:
                assert_same_row(found, row)
    assert refused > num_flips / 2
    assert verify(cache_format.open(root)) == []


def test_a_flipped_bit_in_a_shard_read_before_is_detected(root: Path) -> None:
    cache = cache_format.open(root)
    entry = cache.shards("train")[0]
    cache.read_row("train", 0)
    offset = entry.num_bytes // 2
    for _ in _flipped(root / entry.file, [offset], seed=0):
        with pytest.raises(CorruptShardError):
            [cache.read_row("train", index) for index in range(entry.num_rows)]


def test_a_flipped_bit_in_a_receipt_is_detected(root: Path) -> None:
    path = root / "receipts/00001.json"
    for _ in _flipped(path, list(range(0, path.stat().st_size, 7)), seed=2):
        cache = cache_format.open(root)
        assert [problem.path for problem in verify(cache)] == [path]
        with pytest.raises(CacheError, match=r"receipts/00001\.json: "):
            cache.read_row("train", 0)


@pytest.mark.parametrize("name", ["manifest.json", "receipts/teacher.json"])
def test_a_flipped_bit_in_manifest_or_teacher_receipt_is_detected(root: Path, name: str) -> None:
    path = root / name
    positions = list(range(path.stat().st_size))[:: 1 + path.stat().st_size // 800]
    for _ in _flipped(path, positions, seed=3):
        with pytest.raises(CacheError, match=name):
            cache_format.open(root).attachment("config.json")


def test_a_flipped_bit_in_an_attachment_is_detected(root: Path) -> None:
    path = root / "teacher/config.json"
    for _ in _flipped(path, list(range(path.stat().st_size)), seed=4):
        cache = cache_format.open(root)
        assert [problem.path for problem in verify(cache)] == [path]
        with pytest.raises(CacheError, match=r"config\.json: damaged"):
            cache.attachment("config.json")


def test_a_flipped_bit_in_the_principal_components_is_detected(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    write_sample_cache(root, sample_spec(sketch=pca_sketch()))
    path = root / "projection.bin"
    for _ in _flipped(path, list(range(0, path.stat().st_size, 3)), seed=6):
        cache = cache_format.open(root)
        assert [problem.path for problem in verify(cache)] == [path]
        with pytest.raises(CacheError, match=r"projection\.bin: damaged"):
            _ = cache.projection


def test_a_flipped_bit_in_the_transform_is_detected(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    write_sample_cache(root, sample_spec(targets=hidden_targets()))
    path = root / "transform.bin"
    positions = random.Random(0).sample(range(path.stat().st_size), 100)
    for _ in _flipped(path, positions, seed=8):
        cache = cache_format.open(root)
        assert [problem.path for problem in verify(cache)] == [path]
        with pytest.raises(CacheError, match=r"transform\.bin: damaged"):
            cache.read_row("train", 0)
        with pytest.raises(CacheError, match=r"transform\.bin: damaged"):
            _ = cache.transform


@pytest.mark.parametrize(
    "targets",
    [drawn_targets(), hidden_targets(), top_k_hidden_targets()],
    ids=lambda targets: targets.kind,
)
def test_a_flipped_bit_in_a_shard_of_other_targets_is_detected(
    tmp_path: Path, targets: TargetSpec
) -> None:
    root = tmp_path / "cache"
    spec = sample_spec(targets=targets)
    write_sample_cache(root, spec)
    entry = cache_format.open(root).shards("train")[0]
    path, expected = root / entry.file, list(cache_format.open(root).iter_rows("train"))
    positions = random.Random(0).sample(range(entry.num_bytes), 60)
    for _ in _flipped(path, positions, seed=7):
        cache = cache_format.open(root)
        assert [problem.path for problem in verify(cache)] == [path]
        for index, (_, row) in enumerate(expected):
            try:
                found = cache.read_row("train", index, with_sketch=False)[1]
            except CorruptShardError as error:
                assert str(path) in str(error)  # noqa: PT017
            else:
                assert_same_row(found, replace(row, sketch=None))


def test_a_shard_truncated_anywhere_is_refused(root: Path) -> None:
    entry = cache_format.open(root).shards("train")[0]
    path = root / entry.file
    whole = path.read_bytes()
    try:
        for length in range(0, entry.num_bytes, 97):
            path.write_bytes(whole[:length])
            cache = cache_format.open(root)
            assert [problem.path for problem in verify(cache)] == [path]
            for index in range(entry.num_rows):
                with pytest.raises(CorruptShardError, match=f"found {length}"):
                    cache.read_row("train", index)
    finally:
        path.write_bytes(whole)


def test_a_damaged_receipt_of_an_unfinished_cache_is_detected(root: Path) -> None:
    """Without a manifest, the receipt's own seal tells."""
    manifest, receipt = root / "manifest.json", root / "receipts/00001.json"
    whole = manifest.read_bytes()
    manifest.unlink()
    try:
        for _ in _flipped(receipt, list(range(0, receipt.stat().st_size, 7)), seed=5):
            with pytest.raises(CacheError, match=r"receipts/00001\.json: "):
                cache_format.open(root, allow_incomplete=True)
    finally:
        manifest.write_bytes(whole)
