"""The files that all shards share: which there are, their bytes, and everything that is none."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import cache_format
from cache_format.errors import CorruptFileError, MissingFileError
from cache_format.metadata.spec import CacheSpec
from cache_format.storage.open import storage_at
from cache_format.tables.shared_files import (
    SharedFiles,
    files_of,
    read_projection,
    read_ranks,
    read_transform,
    require_shared,
    shared_from_bytes,
)
from cache_format.tables.vocabulary_ranks import RankTable
from cache_format.writer import CacheWriter
from tests.support.sample_cache import (
    hidden_targets,
    pca_sketch,
    sample_ranks,
    sample_shared,
    sample_spec,
    sample_transform,
    write_sample_cache,
)

SPEC = sample_spec()
PCA = sample_spec(sketch=pca_sketch())
HIDDEN = sample_spec(targets=hidden_targets(), sketch=pca_sketch())
READ = {
    "ranks.bin": read_ranks,
    "projection.bin": read_projection,
    "transform.bin": read_transform,
}


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        (SPEC, ["ranks.bin"]),
        (PCA, ["ranks.bin", "projection.bin"]),
        (HIDDEN, ["ranks.bin", "projection.bin", "transform.bin"]),
    ],
)
def test_the_spec_names_its_files_by_size_and_hash(spec: CacheSpec, names: list[str]) -> None:
    data, files = sample_shared(spec).to_bytes(), files_of(spec)
    assert list(data) == list(files) == names
    for name, file in files.items():
        assert file.num_bytes == len(data[name])
        assert file.sha256 == hashlib.sha256(data[name]).hexdigest()


def test_shared_files_round_trip_through_bytes() -> None:
    given = sample_shared(HIDDEN)
    found = shared_from_bytes(given.to_bytes(), HIDDEN)
    assert found.to_bytes() == given.to_bytes()
    np.testing.assert_array_equal(found.ranks.ids_by_rank, given.ranks.ids_by_rank)
    np.testing.assert_array_equal(found.projection, given.projection)
    without = shared_from_bytes(sample_shared(SPEC).to_bytes(), SPEC)
    assert without.projection is None
    assert without.transform is None


def test_files_other_than_the_spec_names_are_refused(tmp_path: Path) -> None:
    require_shared(sample_shared(SPEC), SPEC)
    require_shared(sample_shared(PCA), PCA)
    other = SharedFiles(ranks=RankTable(np.arange(40, dtype=np.int32)))
    larger = SharedFiles(ranks=sample_ranks(41))
    for shared, spec, message in (
        (other, SPEC, r"^ranks\.bin: not the file that the spec names"),
        (larger, SPEC, r"^ranks\.bin: not the file that the spec names"),
        (larger, replace(SPEC, ranks_sha256=larger.ranks.sha256), "expected 160 bytes, found 164"),
        (sample_shared(SPEC), PCA, r"expected ranks\.bin, projection\.bin, found ranks\.bin$"),
        (sample_shared(PCA), SPEC, r"expected ranks\.bin, found ranks\.bin, projection\.bin$"),
    ):
        with pytest.raises(ValueError, match=message):
            require_shared(shared, spec)
        with pytest.raises(ValueError, match=message):
            CacheWriter.create_or_open(tmp_path / "cache", spec, shared)
    assert not (tmp_path / "cache").exists()


def test_a_cache_gives_its_shared_files(tmp_path: Path) -> None:
    write_sample_cache(tmp_path, HIDDEN)
    cache = cache_format.open(tmp_path)
    assert cache.shared.to_bytes() == sample_shared(HIDDEN).to_bytes()
    tables = SharedFiles(ranks=sample_ranks(), transform=sample_transform())
    assert cache.tables.to_bytes() == tables.to_bytes()


@pytest.mark.parametrize("name", READ)
def test_damaged_and_missing_shared_files_are_named(tmp_path: Path, name: str) -> None:
    write_sample_cache(tmp_path, HIDDEN)
    storage, path, read = storage_at(tmp_path), tmp_path / name, READ[name]
    data = path.read_bytes()
    for wrong in (data[:-1], data + b"\0", bytes([data[0] ^ 1]) + data[1:], b""):
        path.write_bytes(wrong)
        with pytest.raises(CorruptFileError, match=rf"{name}: damaged: expected SHA-256") as caught:
            read(storage, HIDDEN)
        assert caught.value.next_step == files_of(HIDDEN)[name].next_step
    path.unlink()
    with pytest.raises(MissingFileError, match=rf"{name}: missing"):
        read(storage, HIDDEN)


def test_a_file_whose_hash_is_right_but_whose_content_is_not_is_refused(tmp_path: Path) -> None:
    """As a faulty program would write it."""
    write_sample_cache(tmp_path)
    zeros = bytes(160)
    spec = replace(SPEC, ranks_sha256=hashlib.sha256(zeros).hexdigest())
    (tmp_path / "ranks.bin").write_bytes(zeros)
    with pytest.raises(CorruptFileError, match=r"ranks\.bin: ranks: expected every id exactly"):
        read_ranks(storage_at(tmp_path), spec)


def test_a_transform_whose_hash_is_right_but_whose_code_is_not_is_refused(tmp_path: Path) -> None:
    write_sample_cache(tmp_path, HIDDEN)
    zeros = bytes(len(sample_transform().to_bytes()))
    targets = hidden_targets(transform_sha256=hashlib.sha256(zeros).hexdigest())
    (tmp_path / "transform.bin").write_bytes(zeros)
    with pytest.raises(CorruptFileError, match=r"transform\.bin: transform: limits: expected"):
        read_transform(storage_at(tmp_path), replace(HIDDEN, targets=targets))


def test_without_principal_components_there_is_nothing_to_read(tmp_path: Path) -> None:
    write_sample_cache(tmp_path)
    assert read_projection(storage_at(tmp_path), SPEC) is None
    assert read_transform(storage_at(tmp_path), SPEC) is None
