"""``pipeline pack`` and ``pipeline unpack``."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from tests.support import ROOT, tiny
from tests.support.command_line import done, run
from tests.support.sample_cache import contents


class TestPack:
    def test_pack_and_unpack_give_the_same_files(self, tiny_cache: Path, tmp_path: Path) -> None:
        archive = tmp_path / "my cache.tar.zst"
        result = done("pack", tiny_cache, archive)
        assert "pipeline unpack 'my cache.tar.zst' CACHE" in result.stdout
        assert "100.0%" in result.stderr
        result = done("unpack", archive, tmp_path / "new")
        assert "complete; " in result.stdout
        assert "100.0%" in result.stderr
        assert contents(tmp_path / "new") == contents(tiny_cache)

    def test_pack_and_unpack_work_through_pipes(self, tiny_cache: Path, tmp_path: Path) -> None:
        packed = done("pack", tiny_cache, "-", "--threads", "1")
        done("pack", tiny_cache, tmp_path / "a.tar.zst")
        assert packed.stdout_bytes == (tmp_path / "a.tar.zst").read_bytes()
        done("unpack", "-", tmp_path / "new", stdin=packed.stdout_bytes)
        assert contents(tmp_path / "new") == contents(tiny_cache)

    def test_an_existing_file_is_not_overwritten(self, tiny_cache: Path, tmp_path: Path) -> None:
        (tmp_path / "a.tar.zst").write_bytes(b"mine")
        result = run("pack", tiny_cache, tmp_path / "a.tar.zst")
        assert result.exit_code == 1
        assert "already exists" in result.stderr
        assert (tmp_path / "a.tar.zst").read_bytes() == b"mine"

    def test_a_file_inside_of_the_cache(self, tiny_cache: Path, tmp_path: Path) -> None:
        """No link leads around the check, and nothing is left there."""
        cache = shutil.copytree(tiny_cache, tmp_path / "cache")
        (tmp_path / "link").symlink_to(cache / "shards")
        before = sorted(cache.rglob("*"))
        for archive in (cache / "a.tar.zst", tmp_path / "link/a.tar.zst"):
            result = run("pack", cache, archive)
            assert result.exit_code == 1
            assert f"{archive.name}: lies in the cache {cache}" in result.stderr
        assert sorted(cache.rglob("*")) == before

    def test_an_unfinished_cache_is_packed_only_with_allow_incomplete(
        self, tiny_cache: Path, tmp_path: Path
    ) -> None:
        cache = shutil.copytree(tiny_cache, tmp_path / "cache")
        (cache / "manifest.json").unlink()
        result = run("pack", cache, tmp_path / "a.tar.zst")
        assert result.exit_code == 1
        assert "still being written" in result.stderr
        assert not (tmp_path / "a.tar.zst").exists()
        done("pack", cache, tmp_path / "a.tar.zst", "--allow-incomplete")
        assert "NOT complete" in done("unpack", tmp_path / "a.tar.zst", tmp_path / "new").stdout

    def test_a_killed_pack_publishes_nothing_and_the_next_removes_its_leftovers(
        self, tiny_cache: Path, tmp_path: Path
    ) -> None:
        """Nothing is half-published, and the next one removes what was left."""
        program = """
import os, signal, sys
import cache_format.tools.archive as archive
from pipeline.cli import main
def write(cache, sink, **options):
    sink.write(b"half")
    sink.flush()
    os.kill(os.getpid(), signal.SIGKILL)
archive.pack = write
main(sys.argv[1:], prog_name="pipeline")
"""
        out = tmp_path / "out"
        out.mkdir()
        (out / ".tmp-of-somebody-else").touch()
        command = [sys.executable, "-c", program, "pack", str(tiny_cache), str(out / "a.tar.zst")]
        finished = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
        assert finished.returncode == -signal.SIGKILL
        assert len(list(out.iterdir())) == 2
        assert not (out / "a.tar.zst").exists()
        done("pack", tiny_cache, out / "a.tar.zst")
        assert {path.name for path in out.iterdir()} == {".tmp-of-somebody-else", "a.tar.zst"}

    def test_a_damaged_cache_is_not_packed(self, tiny_cache: Path, tmp_path: Path) -> None:
        cache = shutil.copytree(tiny_cache, tmp_path / "cache")
        shard = min((cache / "shards").iterdir())
        shard.write_bytes(bytes(shard.stat().st_size))
        result = run("pack", cache, tmp_path / "a.tar.zst")
        assert result.exit_code == 1
        assert shard.name in result.stderr
        assert not list(tmp_path.glob("*a.tar.zst*"))

    def test_a_truncated_archive_is_refused_and_unpacking_can_resume(
        self, tiny_cache: Path, tmp_path: Path
    ) -> None:
        archive = tmp_path / "a.tar.zst"
        done("pack", tiny_cache, archive)
        archive.write_bytes(archive.read_bytes()[:-1000])
        result = run("unpack", archive, tmp_path / "new")
        assert result.exit_code == 1
        assert f"Error: {archive}: at byte" in result.stderr
        assert "cut short" in result.stderr
        assert "unpack it again: it resumes from there" in result.stderr

    def test_packing_into_a_missing_directory_is_refused(
        self, tiny_cache: Path, tmp_path: Path
    ) -> None:
        result = run("pack", tiny_cache, tmp_path / "nothing/a.tar.zst")
        assert result.exit_code == 1
        assert f"no such directory: {tmp_path / 'nothing'}. Create it" in result.stderr
        assert "PIPELINE_DEBUG" not in result.stderr


class TestUnpack:
    def test_unpacking_a_missing_file_is_a_usage_error(self, tmp_path: Path) -> None:
        result = run("unpack", tmp_path / "a.tar.zst", tmp_path / "new")
        assert result.exit_code == 2
        assert "a.tar.zst' does not exist" in result.stderr

    @pytest.mark.parametrize("content", [b"", b"PAR1" * 9, zstandard.compress(bytes(2000))])
    def test_a_file_that_is_no_archive_is_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a").write_bytes(content)
        result = run("unpack", tmp_path / "a", tmp_path / "new")
        assert result.exit_code == 1
        assert f"{tmp_path / 'a'}: at byte " in result.stderr
        assert "It is not a packed cache" in result.stderr
        assert "To pack a cache: `pipeline pack CACHE FILE`" in result.stderr
        assert "unpacked so far" not in result.stderr
        assert not (tmp_path / "new").exists()

    def test_unpacking_onto_a_cache_of_another_spec_is_refused(
        self, tiny_cache: Path, tmp_path: Path
    ) -> None:
        done("pack", tiny_cache, tmp_path / "a.tar.zst")
        other = tiny.tiny_cache(tmp_path / "other", 20, top_k=5)
        result = run("unpack", tmp_path / "a.tar.zst", other)
        assert result.exit_code == 1
        assert "targets.kept.top_k: expected 12, found 5\n" in result.stderr
        assert "Choose another directory" in result.stderr
        assert "--out" not in result.stderr
