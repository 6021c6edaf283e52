"""``pack`` and ``unpack``: the same bytes, killed and gone on with, damaged in every place."""

import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

import cache_format
from cache_format.errors import (
    CorruptArchiveError,
    CorruptFileError,
    ForeignDirectoryError,
    IncompleteCacheError,
    SpecMismatchError,
)
from cache_format.metadata.receipt import teacher_receipt_bytes
from cache_format.metadata.recipe_file import seal_recipe
from cache_format.storage.open import storage_at
from cache_format.tools.archive import unpack
from cache_format.tools.archive_stream import ArchivedFile, write_archive
from cache_format.tools.verify import verify
from cache_format.writer import CacheWriter
from tests.support import ROOT
from tests.support.archives import archive_of, compressed, members, packed, tar_of
from tests.support.sample_cache import (
    build_teacher,
    contents,
    fill,
    sample_shared,
    sample_spec,
    shard_path,
    write_sample_cache,
)


def unpacked(archive: bytes, target: Path | str, report: Any = lambda done, total: None) -> Any:
    return unpack(io.BytesIO(archive), target, name="a.tar.zst", report=report)


class TestRoundTrip:
    def test_pack_and_unpack_give_the_same_bytes(self, root: Path, tmp_path: Path) -> None:
        recipe = seal_recipe('description = "größer"\n', sample_spec().cache_id)
        (root / "recipe.toml").write_bytes(recipe)
        seen: list[tuple[int, int]] = []
        manifest = unpacked(packed(root), tmp_path / "new", lambda *now: seen.append(now))
        assert contents(tmp_path / "new") == contents(root)
        assert manifest == cache_format.open(root).manifest
        assert verify(cache_format.open(tmp_path / "new")) == []
        assert seen == sorted(seen)
        total = sum(
            p.stat().st_size for d in ("shards", "teacher") for p in (root / d).rglob("*.*")
        )
        assert seen[-1] == (total, total)

    def test_the_archive_bytes_depend_on_the_cache_alone(self, root: Path, tmp_path: Path) -> None:
        first = packed(root, num_threads=1)
        assert packed(root, num_threads=3) == first
        for path in root.rglob("*"):
            os.utime(path, (1, 1))
        assert packed(shutil.copytree(root, tmp_path / "elsewhere")) == first

    def test_the_number_of_threads_does_not_change_the_archive(self) -> None:
        data = np.random.default_rng(0).bytes(9 << 20) + bytes(9 << 20)
        chunks = [data[i : i + (1 << 20)] for i in range(0, len(data), 1 << 20)]
        archives = set()
        for num_threads in (1, 2, 5):
            sink = io.BytesIO()
            write_archive(sink, [ArchivedFile("file", len(data), chunks)], num_threads)
            archives.add(sink.getvalue())
        assert len(archives) == 1
        with tarfile.open(fileobj=io.BytesIO(tar_of(archives.pop()))) as tar:
            content = tar.extractfile("file")
            assert content is not None
            assert content.read() == data

    def test_tar_and_zstd_can_read_the_archive(self, root: Path, tmp_path: Path) -> None:
        with tarfile.open(fileobj=io.BytesIO(tar_of(packed(root)))) as tar:
            tar.extractall(tmp_path / "new", filter="data")
        assert contents(tmp_path / "new") == contents(root)

    def test_the_archive_holds_its_files_in_a_fixed_order(self, root: Path) -> None:
        names = [info.name for info, _ in members(root)]
        assert names[:6] == [
            *("manifest.json", "spec.json", "ranks.bin", "receipts/teacher.json"),
            *("teacher/config.json", "teacher/templates/chat.jinja"),
        ]
        assert names[6:8] == ["receipts/00000.json", f"shards/{shard_path(root, 0).name}"]
        assert names[-1] == f"shards/{shard_path(root, 3).name}"

    def test_caches_are_packed_from_and_unpacked_to_urls(self, root: Path, tmp_path: Path) -> None:
        archive = packed(root)
        place = f"memory://{tmp_path.name}/cache"
        unpacked(archive, place)
        assert verify(cache_format.open(place)) == []
        assert packed(place) == archive
        shard = cache_format.open(place).manifest.shards[1].file
        storage_at(place).remove(shard)
        unpacked(archive, place)
        assert packed(place) == archive

    def test_a_cache_without_attachments_is_packed_and_unpacked(self, tmp_path: Path) -> None:
        writer = CacheWriter.create_or_open(
            tmp_path / "cache", sample_spec(with_sketch=False), sample_shared()
        )
        fill(writer, [0])
        writer.publish_manifest(10, complete=True)
        unpacked(packed(tmp_path / "cache"), tmp_path / "new")
        assert contents(tmp_path / "new") == contents(tmp_path / "cache")

    def test_an_unfinished_cache_stays_unfinished(self, tmp_path: Path) -> None:
        writer = CacheWriter.create_or_open(tmp_path / "cache", sample_spec(), sample_shared())
        writer.write_attachments(build_teacher)
        fill(writer, [0, 1])
        assert not unpacked(packed(tmp_path / "cache"), tmp_path / "new").complete
        with pytest.raises(IncompleteCacheError):
            cache_format.open(tmp_path / "new")
        fill(CacheWriter.create_or_open(tmp_path / "new", sample_spec(), sample_shared()), [2, 3])

    def test_a_damaged_file_of_the_packed_cache_is_named(self, root: Path) -> None:
        for path in (
            *(shard_path(root, 1), root / "teacher/config.json"),
            *(root / "receipts/00001.json", root / "receipts/teacher.json"),
        ):
            whole = path.read_bytes()
            path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
            with pytest.raises(CorruptFileError, match=path.name):
                packed(root)
            path.write_bytes(whole)

    def test_a_name_too_long_for_a_tar_header_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"^a{101}: cannot be packed"):
            write_archive(io.BytesIO(), [ArchivedFile("a" * 101, 0, [])], 1)


class TestResume:
    def test_unpacking_keeps_intact_files_and_replaces_damaged_ones(
        self, root: Path, tmp_path: Path
    ) -> None:
        archive = packed(root)
        unpacked(archive, tmp_path / "new")
        before = {path: path.stat().st_ino for path in (tmp_path / "new").rglob("*.arrow")}
        shard_path(tmp_path / "new", 1).unlink()
        lost = shard_path(tmp_path / "new", 3)
        lost.write_bytes(lost.read_bytes()[:-1])
        unpacked(archive, tmp_path / "new")
        assert contents(tmp_path / "new") == contents(root)
        kept = [path for path, inode in before.items() if path.stat().st_ino == inode]
        assert {path.name[:5] for path in kept} >= {"00000", "00002"}

    def test_unpacking_a_larger_archive_extends_the_cache(self, tmp_path: Path) -> None:
        writer = CacheWriter.create_or_open(tmp_path / "cache", sample_spec(), sample_shared())
        writer.write_attachments(build_teacher)
        fill(writer, [0, 1])
        writer.publish_manifest(50, complete=True)
        smaller = packed(tmp_path / "cache")
        unpacked(smaller, tmp_path / "new")
        write_sample_cache(tmp_path / "cache")
        unpacked(packed(tmp_path / "cache"), tmp_path / "new")
        assert contents(tmp_path / "new") == contents(tmp_path / "cache")
        with pytest.raises(ForeignDirectoryError, match="has a unit 2, which a"):
            unpacked(smaller, tmp_path / "new")
        assert contents(tmp_path / "new") == contents(tmp_path / "cache")

    def test_unpacking_onto_a_cache_of_another_spec_is_refused(
        self, root: Path, tmp_path: Path
    ) -> None:
        write_sample_cache(tmp_path / "other", sample_spec(seed=8))
        before = contents(tmp_path / "other")
        with pytest.raises(SpecMismatchError, match="seed: expected 7, found 8"):
            unpacked(packed(root), tmp_path / "other")
        assert contents(tmp_path / "other") == before

    def test_unpacking_onto_units_of_other_bytes_is_refused(
        self, root: Path, tmp_path: Path
    ) -> None:
        writer = CacheWriter.create_or_open(tmp_path / "other", sample_spec(), sample_shared())
        writer.write_unit(1, [], num_documents=0)
        before = contents(tmp_path / "other")
        with pytest.raises(ForeignDirectoryError, match=r"another unit 1.*merge the two"):
            unpacked(packed(root), tmp_path / "other")
        assert contents(tmp_path / "other") == before

    def test_unpacking_onto_files_of_another_teacher_is_refused(
        self, root: Path, tmp_path: Path
    ) -> None:
        writer = CacheWriter.create_or_open(tmp_path / "other", sample_spec(), sample_shared())
        writer.write_attachments(lambda directory: None)
        with pytest.raises(ForeignDirectoryError, match="other files of the teacher"):
            unpacked(packed(root), tmp_path / "other")

    def test_unpacking_into_a_directory_of_other_files_is_refused(
        self, root: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.tex").touch()
        with pytest.raises(ForeignDirectoryError, match=r"thesis\.tex"):
            unpacked(packed(root), tmp_path / "mine")

    def test_an_unpack_killed_midway_resumes(self, root: Path, tmp_path: Path) -> None:
        """SIGKILL as soon as the second unit is there; the rest of the stream never comes."""
        archive, target = packed(root), tmp_path / "new"
        program = (
            "import sys; from pathlib import Path; from cache_format.tools.archive import unpack;"
            "unpack(sys.stdin.buffer, Path(sys.argv[1]), name='-', report=lambda *_: None)"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(target)],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert process.stdin is not None
        process.stdin.write(archive[:-200])
        process.stdin.flush()
        while not list(target.glob("receipts/0*.json")):
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.stdin.close()
        assert process.wait() == -signal.SIGKILL
        assert not (target / "manifest.json").exists()
        with pytest.raises(IncompleteCacheError):
            cache_format.open(target)
        unpacked(archive, target)
        assert contents(target) == contents(root)


class TestDamage:
    def test_a_flipped_bit_of_an_archive_is_detected_or_harmless(
        self, root: Path, tmp_path: Path
    ) -> None:
        """It is noticed, and what stays is right; or it is one that changes nothing."""
        archive = packed(root)
        wanted = contents(root)
        random = np.random.default_rng(0)
        places = {*range(40), *range(len(archive) - 40, len(archive))}
        places |= set(random.integers(0, len(archive), 100).tolist())
        unnoticed = []
        for place in sorted(places):
            damaged = bytearray(archive)
            damaged[place] ^= 1 << int(random.integers(8))
            target = tmp_path / f"flipped-{place}"
            try:
                unpacked(bytes(damaged), target)
            except CorruptArchiveError:
                assert_correct_but_incomplete(target, wanted)
            else:
                unnoticed.append(place)
                assert contents(target) == wanted
            shutil.rmtree(target, ignore_errors=True)
        assert len(places) - len(unnoticed) > 150
        assert len(unnoticed) < 6  # such as a larger window than is needed

    def test_an_archive_truncated_anywhere_is_refused(self, root: Path, tmp_path: Path) -> None:
        archive = packed(root)
        wanted = contents(root)
        for length in {*range(0, len(archive), 211), *range(len(archive) - 20, len(archive))}:
            target = tmp_path / f"cut-{length}"
            with pytest.raises(CorruptArchiveError, match="cut short"):
                unpacked(archive[:length], target)
            assert_correct_but_incomplete(target, wanted)
            shutil.rmtree(target, ignore_errors=True)

    def test_a_truncated_archive_leaves_finished_units_and_resumes(
        self, root: Path, tmp_path: Path
    ) -> None:
        tar = tar_of(packed(root))
        place = tar.rindex(shard_path(root, 3).name.encode()) + 600
        damaged = compressed(tar[:place] + bytes([tar[place] ^ 1]) + tar[place + 1 :])
        with pytest.raises(CorruptArchiveError) as caught:
            unpacked(damaged, tmp_path / "new")
        message = str(caught.value)
        assert f"shards/{shard_path(root, 3).name}: expected SHA-256" in message
        assert f"kept in {tmp_path / 'new'}" in message
        assert "unpack it again: it resumes from there" in message
        assert len(list((tmp_path / "new/shards").iterdir())) == 3
        unpacked(packed(root), tmp_path / "new")
        assert contents(tmp_path / "new") == contents(root)

    def test_data_after_the_archive_is_refused(self, root: Path, tmp_path: Path) -> None:
        archive = packed(root)
        tar = tar_of(archive)
        for changed in (
            archive + b"\0",
            archive + archive,
            compressed(tar + bytes(512)),
            compressed(tar[:-1024] + tar[-2048:]),
            compressed(tar[:-1024] + b"x" * 1024),
        ):
            with pytest.raises(CorruptArchiveError, match=r"follows its end|expected its end"):
                unpacked(changed, tmp_path / "new")
            assert not (tmp_path / "new/manifest.json").exists()

    def test_a_frame_without_checksum_is_refused(self, root: Path, tmp_path: Path) -> None:
        with pytest.raises(CorruptArchiveError, match="no checksum"):
            unpacked(compressed(tar_of(packed(root)), checksum=False), tmp_path / "new")

    @pytest.mark.parametrize("data", [b"", b"x", b"PK\3\4 not a zstd file", bytes(100)])
    def test_files_of_another_kind_are_refused_as_archives(
        self, data: bytes, tmp_path: Path
    ) -> None:
        with pytest.raises(
            CorruptArchiveError,
            match=r"a\.tar\.zst: at byte [05]: it (was cut short|does not begin)",
        ):
            unpacked(data, tmp_path / "new")
        assert not (tmp_path / "new").exists()


def assert_correct_but_incomplete(target: Path, wanted: dict[str, str]) -> None:
    """Everything that is there is as it should be, and nobody is told that it is complete."""
    found = contents(target) if target.exists() else {}
    assert found.items() <= wanted.items()
    assert "manifest.json" not in found


Change = Callable[[tarfile.TarInfo], object]


def _make(**fields: Any) -> Change:
    def change(info: tarfile.TarInfo) -> None:
        for name, value in fields.items():
            setattr(info, name, value)

    return change


class TestHostileArchives:
    """A shard's entry becomes something else; all of it is refused by what must come next."""

    @pytest.mark.parametrize(
        "change",
        [
            _make(name="../outside"),
            _make(name="/tmp/outside"),
            _make(name="shards/../../outside"),
            _make(name="shards/stranger.arrow"),
            _make(name="manifest.jsom"),
            _make(type=tarfile.SYMTYPE, linkname="/etc/passwd"),
            _make(type=tarfile.LNKTYPE, linkname="manifest.json"),
            _make(type=tarfile.CHRTYPE, devmajor=1),
            _make(type=tarfile.BLKTYPE),
            _make(type=tarfile.FIFOTYPE),
            _make(type=tarfile.DIRTYPE),
            _make(type=tarfile.GNUTYPE_SPARSE),
            _make(type=tarfile.XHDTYPE),
            _make(type=tarfile.GNUTYPE_LONGNAME),
            _make(size=1 << 60),
            _make(size=0),
            _make(size=-1),
        ],
    )
    @pytest.mark.parametrize("which", [0, 1, 2, 3, 5, 7])
    def test_entries_that_are_no_regular_files_are_refused(
        self, root: Path, tmp_path: Path, change: Change, which: int
    ) -> None:
        files = members(root)
        change(files[which][0])
        target = tmp_path / "a" / "new"
        with pytest.raises(CorruptArchiveError):
            unpacked(archive_of(files), target)
        assert not (target / "manifest.json").exists()
        assert [path.name for path in tmp_path.rglob("*outside*")] == []
        assert not Path("/tmp/outside").exists()
        assert not any(path.is_symlink() for path in tmp_path.rglob("*"))

    def test_a_duplicate_archive_entry_is_refused(self, root: Path, tmp_path: Path) -> None:
        files = members(root)
        files.insert(7, files[7])
        with pytest.raises(CorruptArchiveError, match=r"expected the file 'receipts/00001\.json'"):
            unpacked(archive_of(files), tmp_path / "new")

    def test_attachment_names_that_are_both_file_and_directory_are_refused(
        self, root: Path, tmp_path: Path
    ) -> None:
        """``a`` cannot be both a file and the directory of another."""
        names = ("a", "a/b")
        empty = (0, hashlib.sha256(b"").hexdigest())
        receipt = teacher_receipt_bytes(dict.fromkeys(names, empty), sample_spec())
        sha256 = hashlib.sha256(receipt).hexdigest()
        manifest = cache_format.open(root).manifest
        files = [
            ("manifest.json", replace(manifest, teacher_receipt_sha256=sha256).to_bytes()),
            ("spec.json", (root / "spec.json").read_bytes()),
            ("ranks.bin", (root / "ranks.bin").read_bytes()),
            ("receipts/teacher.json", receipt),
            *((f"teacher/{name}", b"") for name in names),
        ]
        sink = io.BytesIO()
        write_archive(sink, [ArchivedFile(name, len(data), [data]) for name, data in files], 1)
        with pytest.raises(CorruptArchiveError, match="in the way of another file"):
            unpacked(sink.getvalue(), tmp_path / "new")
        assert not (tmp_path / "new/teacher").exists()

    def test_a_decompression_bomb_is_refused_in_bounded_memory(
        self, root: Path, tmp_path: Path
    ) -> None:
        """What a few kilobytes become is read block by block, and refused."""
        info = tarfile.TarInfo("manifest.json")
        info.size = 1 << 26
        bomb = io.BytesIO()
        with zstandard.ZstdCompressor(write_checksum=True).stream_writer(bomb, closefd=False) as w:
            w.write(info.tobuf(tarfile.GNU_FORMAT))
            for _ in range(64):
                w.write(bytes(1 << 20))
        with pytest.raises(CorruptArchiveError, match=r"manifest\.json: damaged"):
            unpacked(bomb.getvalue(), tmp_path / "new")
        assert not (tmp_path / "new").exists()
