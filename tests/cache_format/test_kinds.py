"""A cache of each kind of target: written, read, verified, packed, merged and taken along."""

import io
from dataclasses import replace
from pathlib import Path

import pytest

import cache_format
from cache_format.errors import CorruptArchiveError, CorruptFileError, MissingFileError
from cache_format.metadata import layout
from cache_format.metadata.spec import CacheSpec
from cache_format.tables.shared_files import files_of
from cache_format.tools.archive import unpack
from cache_format.tools.merge import merge
from cache_format.tools.verify import verify
from cache_format.writer import CacheWriter
from tests.support.archives import archive_of, members, packed
from tests.support.sample_cache import (
    TARGETS,
    assert_decoded,
    assert_same_row,
    contents,
    fill,
    pca_sketch,
    sample_shared,
    sample_spec,
    unit_rows,
    write_sample_cache,
)


@pytest.fixture(params=TARGETS)
def spec(request: pytest.FixtureRequest) -> CacheSpec:
    """Of a kind, with a sketch that has a file of its own too."""
    return sample_spec(targets=TARGETS[request.param], sketch=pca_sketch())


@pytest.fixture
def whole(tmp_path: Path, spec: CacheSpec) -> Path:
    """A complete cache."""
    write_sample_cache(tmp_path / "whole", spec)
    return tmp_path / "whole"


def _unpack(archive: bytes, target: Path) -> None:
    unpack(io.BytesIO(archive), target, name="a.tar.zst", report=lambda done, total: None)


@pytest.mark.parametrize("with_sketch", [True, False])
def test_rows_are_read_as_they_were_written(
    whole: Path, spec: CacheSpec, with_sketch: bool
) -> None:
    cache = cache_format.open(whole)
    found = [
        pair
        for split in ("train", "validation")
        for pair in cache.iter_rows(split, with_sketch=with_sketch)
    ]
    given = [(unit, row) for unit in (1, 0, 3) for row in unit_rows(unit, spec)]
    for (unit, row), (given_unit, given_row) in zip(found, given, strict=True):
        assert unit == given_unit
        assert_decoded(row, given_row if with_sketch else replace(given_row, sketch=None), spec)


def test_packed_and_unpacked_caches_have_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    _unpack(packed(whole), tmp_path / "new")
    assert contents(tmp_path / "new") == contents(whole)
    assert verify(cache_format.open(tmp_path / "new")) == []


def test_merged_parts_have_the_bytes_of_the_whole(
    whole: Path, spec: CacheSpec, tmp_path: Path
) -> None:
    for name, units in (("a", [0, 1]), ("b", [2, 3])):
        writer = CacheWriter.create_or_open(tmp_path / name, spec, sample_shared(spec))
        fill(writer, units)
        writer.publish_manifest(num_tokens_requested=120, complete=False)
    parts = [cache_format.open(tmp_path / name, allow_incomplete=True) for name in ("b", "a")]
    merge([*parts, cache_format.open(whole)], tmp_path / "out")
    assert contents(tmp_path / "out") == contents(whole)
    assert verify(cache_format.open(tmp_path / "out")) == []


def test_a_cache_at_a_url_has_the_same_rows_and_files(whole: Path, tmp_path: Path) -> None:
    place = f"memory://{tmp_path.name}/cache"
    merge([cache_format.open(whole)], place)
    remote, local = cache_format.open(place), cache_format.open(whole)
    assert verify(remote) == []
    assert remote.shared.to_bytes() == local.shared.to_bytes()
    assert_same_row(remote.read_row("train", 2)[1], local.read_row("train", 2)[1])


def test_a_missing_or_damaged_shared_file_is_named_and_written_again(
    whole: Path, spec: CacheSpec
) -> None:
    before = contents(whole)
    for name in files_of(spec):
        path = whole / name
        data = path.read_bytes()
        for damaged in (None, data[:-1], bytes([data[0] ^ 1]) + data[1:]):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            (problem,) = verify(cache_format.open(whole))
            assert problem.path == path
            assert problem.is_damage
            path.unlink(missing_ok=True)
            CacheWriter.create_or_open(whole, spec, sample_shared(spec))
            assert contents(whole) == before


@pytest.mark.parametrize("spec", ["hidden", "top_k+hidden"], indirect=True)
def test_rows_without_their_transform_are_not_read(whole: Path) -> None:
    (whole / layout.TRANSFORM).unlink()
    cache = cache_format.open(whole)
    with pytest.raises(MissingFileError, match=r"transform\.bin: missing\. Restore"):
        cache.read_row("train", 0)


def test_an_archive_with_another_shared_file_is_refused(
    whole: Path, spec: CacheSpec, tmp_path: Path
) -> None:
    files, names = members(whole), list(files_of(spec))
    assert [info.name for info, _ in files][2 : 2 + len(names)] == names
    for index, name in enumerate(names, 2):
        info, data = files[index]
        damaged = [*files[:index], (info, bytes([data[0] ^ 1]) + data[1:]), *files[index + 1 :]]
        for wrong in (damaged, files[:index] + files[index + 1 :]):
            with pytest.raises(CorruptArchiveError, match=name):
                _unpack(archive_of(wrong), tmp_path / "new")
            assert not (tmp_path / "new").exists()


def test_a_damaged_shared_file_is_not_packed(whole: Path, spec: CacheSpec) -> None:
    for name in files_of(spec):
        data = (whole / name).read_bytes()
        (whole / name).write_bytes(bytes(len(data)))
        with pytest.raises(CorruptFileError, match=f"{name}: damaged"):
            packed(whole)
        (whole / name).write_bytes(data)
