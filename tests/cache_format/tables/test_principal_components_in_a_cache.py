"""``projection.bin``: written once, checked before it is used, and taken along everywhere."""

import hashlib
import io
import shutil
from pathlib import Path

import numpy as np
import pytest

import cache_format
from cache_format.errors import (
    CorruptArchiveError,
    CorruptFileError,
    MissingFileError,
    SpecMismatchError,
)
from cache_format.tables.principal_components import (
    num_bytes,
    projection_bytes,
    projection_from_bytes,
    projection_sha256,
    require_orthonormal,
)
from cache_format.tables.shared_files import SharedFiles
from cache_format.tools.archive import pack, unpack
from cache_format.tools.merge import merge
from cache_format.tools.verify import verify
from cache_format.writer import CacheWriter
from tests.support.sample_cache import (
    contents,
    fill,
    orthonormal,
    pca_sketch,
    sample_ranks,
    sample_spec,
    write_sample_cache,
)

SPEC = sample_spec(sketch=pca_sketch())
W = orthonormal(16, 8)
FILE = "projection.bin"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A complete cache whose sketches are principal components."""
    write_sample_cache(tmp_path / "cache", SPEC)
    return tmp_path / "cache"


def _shared(projection: np.ndarray | None) -> SharedFiles:
    return SharedFiles(ranks=sample_ranks(), projection=projection)


def test_the_matrix_is_stored_as_little_endian_float32_rows(root: Path) -> None:
    data = (root / FILE).read_bytes()
    assert len(data) == num_bytes(SPEC) == 4 * 16 * 8
    np.testing.assert_array_equal(np.frombuffer(data, "<f4").reshape(16, 8), W)
    assert hashlib.sha256(data).hexdigest() == SPEC.sketch.projection_sha256
    assert projection_bytes(np.array([[1.0]], np.float32)) == b"\0\0\x80\x3f"


def test_the_matrix_round_trips(root: Path) -> None:
    cache = cache_format.open(root)
    np.testing.assert_array_equal(cache.projection, W)
    assert verify(cache) == []


def test_a_cache_without_principal_components_has_no_matrix(tmp_path: Path) -> None:
    write_sample_cache(tmp_path / "other")
    cache = cache_format.open(tmp_path / "other")
    assert cache.projection is None
    assert not (tmp_path / "other" / FILE).exists()


def test_nearly_orthonormal_columns_are_accepted_and_others_refused() -> None:
    """An entry of the product may be off by 1e-3."""
    eye = np.eye(4, 2, dtype=np.float32)
    for factor, is_allowed in ((1.0, True), (1.0004, True), (1.0006, False), (np.inf, False)):
        scaled = (eye * factor if np.isfinite(factor) else eye + np.inf).astype(np.float32)
        if is_allowed:
            require_orthonormal(scaled)
        else:
            with pytest.raises(ValueError, match=r"projection: expected (orthonormal|finite)"):
                require_orthonormal(scaled)
    leaning = eye + np.array([[0, 0.002], *[[0, 0]] * 3], np.float32)
    with pytest.raises(ValueError, match=r"orthonormal columns, found .* off by 0\.002"):
        require_orthonormal(leaning)
    with pytest.raises(ValueError, match="orthonormal columns"):
        require_orthonormal(np.full((4, 2), 3e38, np.float32))  # products that no float32 holds


@pytest.mark.parametrize("change", [-1, 1, -512])
def test_a_matrix_file_of_another_length_is_refused(change: int) -> None:
    data = (projection_bytes(W) + b"\0")[: num_bytes(SPEC) + change]
    with pytest.raises(ValueError, match=f"expected 512 bytes, found {512 + change}"):
        projection_from_bytes(data, SPEC)


def test_a_writer_needs_the_matrix_that_the_spec_names(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    with pytest.raises(
        ValueError, match=r"expected ranks\.bin, projection\.bin, found ranks\.bin$"
    ):
        CacheWriter.create_or_open(path, SPEC, _shared(None))
    with pytest.raises(
        ValueError, match=r"expected ranks\.bin, found ranks\.bin, projection\.bin$"
    ):
        CacheWriter.create_or_open(path, sample_spec(), _shared(W))
    for wrong in (W.T, 2 * W, -W):
        with pytest.raises(ValueError, match=r"projection\.bin: not the file that the spec names"):
            CacheWriter.create_or_open(path, SPEC, _shared(wrong))
    twice = sample_spec(sketch=pca_sketch(projection_sha256=projection_sha256(2 * W)))
    with pytest.raises(ValueError, match="expected orthonormal columns"):
        CacheWriter.create_or_open(path, twice, _shared(2 * W))
    narrow = sample_spec(sketch=pca_sketch(dim=7))
    with pytest.raises(ValueError, match="expected 448 bytes, found 512"):
        CacheWriter.create_or_open(path, narrow, _shared(W))
    assert not path.exists()


def test_a_cache_with_another_matrix_is_another_cache(root: Path) -> None:
    before = contents(root)
    other = sample_spec(sketch=pca_sketch(projection_sha256=projection_sha256(-W)))
    with pytest.raises(SpecMismatchError, match=r"sketch\.projection_sha256: expected"):
        CacheWriter.create_or_open(root, other, _shared(-W))
    assert contents(root) == before


@pytest.mark.parametrize("damaged", [b"", b"\0" * 512, projection_bytes(-W)])
def test_a_damaged_matrix_is_named_and_written_again(root: Path, damaged: bytes) -> None:
    before = contents(root)
    (root / FILE).write_bytes(damaged)
    cache = cache_format.open(root)
    with pytest.raises(CorruptFileError, match=r"projection\.bin: damaged: .*from a copy"):
        _ = cache.projection
    (problem,) = verify(cache)
    assert problem.path == root / FILE
    write_sample_cache(root, SPEC)
    assert contents(root) == before


def test_a_missing_matrix_is_named_and_targets_stay_readable(root: Path) -> None:
    (root / FILE).unlink()
    cache = cache_format.open(root)
    with pytest.raises(MissingFileError, match=r"projection\.bin: missing\. Restore"):
        _ = cache.projection
    (problem,) = verify(cache)
    assert problem.path == root / FILE
    assert cache.read_row("train", 0, with_sketch=False)[1].sketch is None


def test_a_sealed_matrix_without_orthonormal_columns_is_refused(tmp_path: Path) -> None:
    """As a faulty program would write it: its hash is right."""
    zeros = np.zeros((16, 8), np.float32)
    spec = sample_spec(sketch=pca_sketch(projection_sha256=projection_sha256(zeros)))
    with pytest.raises(ValueError, match="orthonormal"):
        projection_from_bytes(projection_bytes(zeros), spec)


def _part(path: Path, units: list[int]) -> Path:
    writer = CacheWriter.create_or_open(path, SPEC, _shared(W))
    fill(writer, units)
    writer.publish_manifest(120, complete=False)
    return path


def test_merging_keeps_the_matrix(tmp_path: Path) -> None:
    parts = [_part(tmp_path / "a", [0, 1]), _part(tmp_path / "b", [2, 3])]
    inputs = [cache_format.open(part, allow_incomplete=True) for part in parts]
    out = tmp_path / "out"
    assert merge(inputs, out).is_complete
    np.testing.assert_array_equal(cache_format.open(out).projection, W)
    assert verify(cache_format.open(out)) == []
    # A merge that was killed before it wrote it goes on.
    (out / FILE).unlink()
    merge(inputs, out)
    assert verify(cache_format.open(out)) == []


def _packed(root: Path) -> bytes:
    sink = io.BytesIO()
    pack(cache_format.open(root), sink, num_threads=1, report=lambda done, total: None)
    return sink.getvalue()


def _unpacked(archive: bytes, target: Path | str) -> None:
    unpack(io.BytesIO(archive), target, name="a.tar.zst", report=lambda done, total: None)


def test_an_archive_keeps_the_matrix(root: Path, tmp_path: Path) -> None:
    archive = _packed(root)
    _unpacked(archive, tmp_path / "new")
    assert contents(tmp_path / "new") == contents(root)
    place = f"memory://{tmp_path.name}/cache"
    _unpacked(archive, place)
    np.testing.assert_array_equal(cache_format.open(place).projection, W)
    assert verify(cache_format.open(place)) == []


def test_an_archive_with_another_matrix_is_refused(root: Path, tmp_path: Path) -> None:
    """Every byte of it that is changed in the archive is noticed before anything is written."""
    from tests.support.archives import archive_of, members

    files = members(root)
    names = [info.name for info, _ in files]
    assert names[:4] == ["manifest.json", "spec.json", "ranks.bin", FILE]
    info, data = files[3]
    damaged = [*files[:3], (info, bytes([data[0] ^ 1]) + data[1:]), *files[4:]]
    for wrong in (damaged, files[:3] + files[4:]):
        with pytest.raises(CorruptArchiveError, match=r"projection\.bin"):
            _unpacked(archive_of(wrong), tmp_path / "new")
        assert not (tmp_path / "new").exists()


def test_a_damaged_matrix_is_not_packed(root: Path, tmp_path: Path) -> None:
    shutil.copy(root / "ranks.bin", root / FILE)
    with pytest.raises(CorruptFileError, match=r"projection\.bin: damaged"):
        _packed(root)
