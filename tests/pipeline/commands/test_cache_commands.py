"""``pack``, ``unpack``, ``merge``, ``extend``, ``export`` and ``verify`` as a person types them."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import zstandard
from click.testing import CliRunner, Result

import cache_format
from cache_format.metadata.recipe_file import seal_recipe
from cache_format.storage.base import Storage, checked_chunks
from cache_format.tools.verify import verify
from pipeline.cli import main
from pipeline.recipes.extended_recipe import extended_recipe
from pipeline.recipes.recipe import load_recipe
from tests.support import ROOT, tiny
from tests.support.sample_cache import contents


def run(*arguments: str | Path, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def done(*arguments: str | Path, stdin: bytes | None = None) -> Result:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result


class TestPack:
    def test_there_and_back(self, tiny_cache: Path, tmp_path: Path) -> None:
        archive = tmp_path / "my cache.tar.zst"
        result = done("pack", tiny_cache, archive)
        assert "pipeline unpack 'my cache.tar.zst' CACHE" in result.stdout
        assert "100.0%" in result.stderr
        result = done("unpack", archive, tmp_path / "new")
        assert "complete; " in result.stdout
        assert "100.0%" in result.stderr
        assert contents(tmp_path / "new") == contents(tiny_cache)

    def test_through_a_pipe(self, tiny_cache: Path, tmp_path: Path) -> None:
        packed = done("pack", tiny_cache, "-", "--threads", "1")
        done("pack", tiny_cache, tmp_path / "a.tar.zst")
        assert packed.stdout_bytes == (tmp_path / "a.tar.zst").read_bytes()
        done("unpack", "-", tmp_path / "new", stdin=packed.stdout_bytes)
        assert contents(tmp_path / "new") == contents(tiny_cache)

    def test_a_file_that_is_there_is_kept(self, tiny_cache: Path, tmp_path: Path) -> None:
        (tmp_path / "a.tar.zst").write_bytes(b"mine")
        result = run("pack", tiny_cache, tmp_path / "a.tar.zst")
        assert result.exit_code == 1
        assert "already exists" in result.stderr
        assert (tmp_path / "a.tar.zst").read_bytes() == b"mine"

    def test_an_unfinished_cache(self, tiny_cache: Path, tmp_path: Path) -> None:
        cache = shutil.copytree(tiny_cache, tmp_path / "cache")
        (cache / "manifest.json").unlink()
        result = run("pack", cache, tmp_path / "a.tar.zst")
        assert result.exit_code == 1
        assert "still being written" in result.stderr
        assert not (tmp_path / "a.tar.zst").exists()
        done("pack", cache, tmp_path / "a.tar.zst", "--allow-incomplete")
        assert "NOT complete" in done("unpack", tmp_path / "a.tar.zst", tmp_path / "new").stdout

    def test_killed(self, tiny_cache: Path, tmp_path: Path) -> None:
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

    def test_a_damaged_cache(self, tiny_cache: Path, tmp_path: Path) -> None:
        cache = shutil.copytree(tiny_cache, tmp_path / "cache")
        shard = min((cache / "shards").iterdir())
        shard.write_bytes(bytes(shard.stat().st_size))
        result = run("pack", cache, tmp_path / "a.tar.zst")
        assert result.exit_code == 1
        assert shard.name in result.stderr
        assert not list(tmp_path.glob("*a.tar.zst*"))

    def test_a_damaged_archive(self, tiny_cache: Path, tmp_path: Path) -> None:
        archive = tmp_path / "a.tar.zst"
        done("pack", tiny_cache, archive)
        archive.write_bytes(archive.read_bytes()[:-1000])
        result = run("unpack", archive, tmp_path / "new")
        assert result.exit_code == 1
        assert f"Error: {archive}: at byte" in result.stderr
        assert "cut short" in result.stderr
        assert "run the same command" in result.stderr

    def test_into_no_directory(self, tiny_cache: Path, tmp_path: Path) -> None:
        result = run("pack", tiny_cache, tmp_path / "nothing/a.tar.zst")
        assert result.exit_code == 1
        assert f"there is no directory {tmp_path / 'nothing'}. Create it first" in result.stderr
        assert "PIPELINE_DEBUG" not in result.stderr


class TestUnpack:
    def test_no_file(self, tmp_path: Path) -> None:
        result = run("unpack", tmp_path / "a.tar.zst", tmp_path / "new")
        assert result.exit_code == 2
        assert "a.tar.zst' does not exist" in result.stderr

    @pytest.mark.parametrize("content", [b"", b"PAR1" * 9, zstandard.compress(bytes(2000))])
    def test_no_archive(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a").write_bytes(content)
        result = run("unpack", tmp_path / "a", tmp_path / "new")
        assert result.exit_code == 1
        assert f"{tmp_path / 'a'}: at byte " in result.stderr
        assert "no archive of `pipeline pack`" in result.stderr
        assert "arrived whole" not in result.stderr
        assert not (tmp_path / "new").exists()

    def test_onto_another_cache(self, tiny_cache: Path, tmp_path: Path) -> None:
        done("pack", tiny_cache, tmp_path / "a.tar.zst")
        other = tiny.tiny_cache(tmp_path / "other", 20, top_k=5)
        result = run("unpack", tmp_path / "a.tar.zst", other)
        assert result.exit_code == 1
        assert "targets.top_k: expected 12, found 5\n" in result.stderr
        assert "Choose another directory" in result.stderr
        assert "--out" not in result.stderr


class TestMerge:
    def test_parts(self, tiny_cache: Path, tmp_path: Path) -> None:
        recipe = tmp_path / "recipe.toml"
        teacher, corpus = tiny_cache.parent / "teacher", tiny_cache.parent / "corpus.parquet"
        recipe.write_text(
            "[cache_teacher]\n"
            f'teacher = "{teacher}"\ncorpus = "{corpus}"\nteacher_dtype = "float32"\n'
            'device = "cpu"\nsequence_length = 32\ndocuments_per_unit = 10\nnum_tokens = 1000\n'
            "validation_every = 4\ntop_k = 12\nhidden_projection_dim = 8\nrows_per_forward = 4\n"
            "compile = 'off'\n"
        )
        for name, units in (("a", "0:1"), ("c", "2:")):
            result = done(
                *("cache-teacher", "--recipe", recipe, "--out", tmp_path / name),
                *("--units", units),
            )
            assert f"pipeline merge {tmp_path / name} OTHER... --out CACHE" in result.stdout
        result = done("merge", tmp_path / "a", tmp_path / "c", "--out", tmp_path / "all")
        assert f"{tmp_path / 'all'}: NOT complete; " in result.stdout
        (make,) = [line for line in result.stdout.splitlines() if "--units" in line]
        assert make.endswith("--units 1:2")
        assert "100.0%" in result.stderr
        done(*make.split()[1:])
        cache = cache_format.open(tmp_path / "all")
        assert verify(cache) == []
        assert ": complete; " in done("merge", tmp_path / "a", "--out", tmp_path / "all").stdout

    def test_a_cache_without_a_manifest(self, tiny_cache: Path, tmp_path: Path) -> None:
        cache = shutil.copytree(tiny_cache, tmp_path / "cache")
        (cache / "manifest.json").unlink()
        result = done("merge", cache, "--out", tmp_path / "new")
        assert ": complete; " in result.stdout  # without a manifest there is no budget
        assert contents(tmp_path / "new").keys() == contents(tiny_cache).keys()

    def test_the_whole_corpus(self, tiny_cache: Path, tmp_path: Path) -> None:
        result = done("merge", tiny_cache, "--out", tmp_path / "new")
        assert ": complete; " in result.stdout
        assert "The corpus ended there." in result.stdout

    def test_into_a_url(
        self, tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        out = f"memory://{tmp_path.name}"
        assert f"{out}: complete; " in done("merge", tiny_cache, "--out", out).stdout
        assert verify(cache_format.open(out)) == []
        assert not list(tmp_path.iterdir())  # a URL is no directory

    def test_another_spec(self, tiny_cache: Path, tmp_path: Path) -> None:
        other = tiny.tiny_cache(tmp_path / "other", 20, top_k=5)
        result = run("merge", tiny_cache, other, "--out", tmp_path / "new")
        assert result.exit_code == 1
        assert "targets.top_k: expected 12, found 5" in result.stderr

    def test_wrong_units(self, tmp_path: Path) -> None:
        result = run(
            *("cache-teacher", "--recipe", "demo", "--out", tmp_path / "a", "--units", "5"),
        )
        assert result.exit_code == 2
        assert "--units: '5': expected FIRST:END" in result.stderr
        assert not (tmp_path / "a").exists()


class TestExport:
    def test_files(self, tiny_cache: Path, tmp_path: Path) -> None:
        result = done("export", tiny_cache, tmp_path / "out", "--split", "train", "--no-sketch")
        files = sorted((tmp_path / "out/train").iterdir())
        assert f"{len(files)} parquet files (" in result.stdout
        assert "100.0%" in result.stderr
        assert not (tmp_path / "out/validation").exists()
        rows = sum(pq.read_metadata(path).num_rows for path in files)
        assert rows == cache_format.open(tiny_cache).num_rows("train")
        assert "sketch" not in pq.read_schema(files[0]).names

    def test_another_format(self, tiny_cache: Path, tmp_path: Path) -> None:
        result = run("export", tiny_cache, tmp_path / "out", "--format", "csv")
        assert result.exit_code == 2


class TestVerify:
    @pytest.mark.parametrize("threads", ["1", "3"])
    def test_nothing_is_left(self, tiny_cache: Path, cache_home: Path, threads: str) -> None:
        result = done("verify", tiny_cache, "--threads", threads)
        assert "every byte is as it was written" in result.stdout
        assert [path for path in cache_home.rglob("*") if path.is_file()] == []

    def test_interrupted(
        self, tiny_cache: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names: list[str] = []

        def interrupting(storage: Storage, name: str, *arguments: Any) -> Iterator[bytes]:
            if len(names) == 4:
                raise KeyboardInterrupt
            names.append(name)
            return checked_chunks(storage, name, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr("cache_format.tools.verify.checked_chunks", interrupting)
            result = run("verify", tiny_cache, "--threads", "1")
        assert result.exit_code == 130
        assert "Run the same command again" in result.stderr
        (record,) = (path for path in cache_home.rglob("*") if path.is_file())
        shutil.copy(record, record.with_suffix(".copy"))
        result = done("verify", tiny_cache)
        assert "going on with an interrupted verification" in result.stderr
        assert not record.exists()
        shutil.copy(record.with_suffix(".copy"), record)
        result = done("verify", tiny_cache, "--fresh")
        assert "going on" not in result.stderr
        assert not record.exists()

    def test_a_state_of_ones_own(self, tiny_cache: Path, tmp_path: Path) -> None:
        done("verify", tiny_cache, "--state", tmp_path / "mine")
        assert not (tmp_path / "mine").exists()
        (tmp_path / "file").touch()
        result = run("verify", tiny_cache, "--state", tmp_path / "file" / "mine")
        assert result.exit_code == 1

    @pytest.mark.parametrize("options", [(), ("--fresh",)])
    def test_a_state_that_is_something_else(
        self, tiny_cache: Path, tmp_path: Path, options: tuple[str, ...]
    ) -> None:
        (tmp_path / "notes").write_text("mine")
        result = run("verify", tiny_cache, "--state", tmp_path / "notes", *options)
        assert result.exit_code == 1
        assert "notes: holds something that is no record of a verification" in result.stderr
        assert (tmp_path / "notes").read_text() == "mine"

    def test_without_a_directory_for_it(self, tiny_cache: Path, cache_home: Path) -> None:
        cache_home.touch()  # a file where the directory should be
        result = done("verify", tiny_cache)
        assert "the next verification starts over" in result.stderr
        assert "every byte is as it was written" in result.stdout


class TestExtend:
    @pytest.fixture
    def cache(self, tiny_cache: Path, tmp_path: Path) -> Path:
        """A cache of 1,000 tokens or a little more, from files of its own."""
        home = tmp_path / "home"
        home.mkdir()
        shutil.copytree(tiny_cache.parent / "teacher", home / "teacher")
        shutil.copy(tiny_cache.parent / "corpus.parquet", home / "corpus.parquet")
        settings = {
            **{"teacher": home / "teacher", "corpus": home / "corpus.parquet"},
            **{"teacher_dtype": "float32", "device": "cpu", "sequence_length": 32},
            **{
                "documents_per_unit": 10,
                "validation_every": 4,
                "top_k": 12,
                "hidden_projection_dim": 8,
            },
            "compile": "off",
        }
        words = [w for k, v in settings.items() for w in ("--set", f"cache_teacher.{k}={v}")]
        done("cache-teacher", "--recipe", "demo", "--out", home / "cache", "--tokens", "1K", *words)
        return home / "cache"

    def test_a_larger_budget(self, cache: Path) -> None:
        before = cache_format.open(cache).manifest
        result = done("extend", cache, "--num-tokens", "2K")
        manifest = cache_format.open(cache).manifest
        assert manifest.num_tokens_requested == 2000
        assert manifest.shards[: len(before.shards)] == before.shards
        assert len(manifest.shards) > len(before.shards)
        assert load_recipe(str(cache / "recipe.toml")).cache_teacher.num_tokens == 2000
        assert f"--recipe {cache / 'recipe.toml'} --cache {cache}" in result.stdout

    def test_no_larger_budget(self, cache: Path) -> None:
        before = contents(cache)
        result = run("extend", cache, "--tokens", "500")
        assert result.exit_code == 1
        assert "tokens already: expected a budget above that, found 500" in result.stderr
        assert contents(cache) == before

    def test_no_number(self, cache: Path) -> None:
        result = run("extend", cache, "--tokens", "many")
        assert result.exit_code == 2
        assert "--tokens many: expected a whole number" in result.stderr

    def test_the_whole_corpus(self, cache: Path) -> None:
        done("extend", cache, "--tokens", "1B")
        result = run("extend", cache, "--tokens", "2B")
        assert result.exit_code == 1
        assert "holds the whole corpus" in result.stderr

    @pytest.mark.parametrize(
        ("name", "file"), [("teacher", "teacher"), ("corpus", "corpus.parquet")]
    )
    def test_what_it_was_made_from_is_gone(
        self, cache: Path, tmp_path: Path, name: str, file: str
    ) -> None:
        (tmp_path / "moved").mkdir()
        (cache.parent / file).rename(tmp_path / "moved" / file)
        result = run("extend", cache, "--tokens", "2K")
        assert result.exit_code == 1
        assert (
            f"{name} '{cache.parent / file}', which {cache} was made from, is no" in result.stderr
        )
        command = next(line for line in result.stderr.splitlines() if "pipeline cache-t" in line)
        words = command.replace("PATH", str(tmp_path / "moved" / file)).split()
        done(*words[1:])
        assert cache_format.open(cache).manifest.num_tokens_requested == 2000

    def test_without_a_recipe(self, cache: Path) -> None:
        (cache / "recipe.toml").unlink()
        result = run("extend", cache, "--tokens", "2K")
        assert result.exit_code == 1
        assert "recipe.toml: missing. Extend it with the recipe" in result.stderr

    def test_a_damaged_recipe(self, cache: Path) -> None:
        path = cache / "recipe.toml"
        data = path.read_bytes()
        for changed in (b"\xff" + data, data[:-1], data.replace(b"top_k = 12", b"top_k = 13")):
            path.write_bytes(changed)
            result = run("extend", cache, "--tokens", "2K")
            assert result.exit_code == 1
            assert f"{path}: its " in result.stderr
            assert "seal" in result.stderr
            assert "Extend it with the recipe that it was made with" in result.stderr

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("a = " + "[" * 100_000, "nested too deep"),
            ("[cache_teacher]\ntop_k = " + "9" * 5000, "not valid TOML: Exceeds the limit"),
            ("[cache_teacher]\nof_tomorrow = 1", "unknown key"),
        ],
        ids=["nested", "huge", "unknown"],
    )
    def test_a_recipe_that_is_none(self, cache: Path, text: str, problem: str) -> None:
        cache_id = cache_format.open(cache).cache_id
        (cache / "recipe.toml").write_bytes(seal_recipe(text, cache_id))
        result = run("extend", cache, "--tokens", "2K")
        assert result.exit_code == 2
        assert f"Error: {cache / 'recipe.toml'}: " in result.stderr
        assert problem in result.stderr

    def test_it_is_said_from_where_is_read(self, cache: Path) -> None:
        stderr = done("extend", cache, "--tokens", "2K").stderr
        assert f"the teacher is read from {str(cache.parent / 'teacher')!r}" in stderr
        assert f"its text from {str(cache.parent / 'corpus.parquet')!r}" in stderr

    def test_commits_are_those_of_the_cache(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A branch in the recipe may have moved on; the spec has the commit."""
        opened = cache_format.open(cache)
        spec = opened.spec
        spec = replace(
            spec,
            teacher=replace(spec.teacher, revision="abc"),
            corpus=replace(spec.corpus, revision="def"),
        )
        recipe = (cache / "recipe.toml").read_text()
        (cache / "recipe.toml").write_bytes(seal_recipe(recipe, spec.cache_id))
        opened.manifest = replace(opened.manifest, spec=spec)
        monkeypatch.setattr(cache_format, "open", lambda *_, **__: opened)
        config = extended_recipe(cache, "2K").cache_teacher
        assert (config.teacher_revision, config.corpus_revision) == ("abc", "def")
