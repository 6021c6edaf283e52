"""``pipeline merge``."""

import shutil
from pathlib import Path

import pytest

import cache_format
from cache_format.tools.verify import verify
from tests.support import tiny
from tests.support.command_line import done, run
from tests.support.sample_cache import contents


def test_merged_unit_ranges_are_a_complete_cache(tiny_cache: Path, tmp_path: Path) -> None:
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


def test_a_cache_without_a_manifest_is_merged_completely(tiny_cache: Path, tmp_path: Path) -> None:
    cache = shutil.copytree(tiny_cache, tmp_path / "cache")
    (cache / "manifest.json").unlink()
    result = done("merge", cache, "--out", tmp_path / "new")
    assert ": complete; " in result.stdout  # without a manifest there is no budget
    assert contents(tmp_path / "new").keys() == contents(tiny_cache).keys()


def test_merging_says_that_the_corpus_ended(tiny_cache: Path, tmp_path: Path) -> None:
    result = done("merge", tiny_cache, "--out", tmp_path / "new")
    assert ": complete; " in result.stdout
    assert "The corpus ended there." in result.stdout


def test_merging_into_a_url_writes_nothing_locally(
    tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = f"memory://{tmp_path.name}"
    assert f"{out}: complete; " in done("merge", tiny_cache, "--out", out).stdout
    assert verify(cache_format.open(out)) == []
    assert not list(tmp_path.iterdir())  # a URL is no directory


def test_a_damaged_unit_of_the_target(tiny_cache: Path, tmp_path: Path) -> None:
    out = shutil.copytree(tiny_cache, tmp_path / "out")
    next((out / "shards").glob("00001-*")).unlink()
    text = done("merge", out, "--out", out).stdout
    assert f"Units 1 were damaged in {out}: " in text
    assert "--units 1:2" in text


def test_caches_of_different_specs_are_refused(tiny_cache: Path, tmp_path: Path) -> None:
    other = tiny.tiny_cache(tmp_path / "other", 20, top_k=5)
    result = run("merge", tiny_cache, other, "--out", tmp_path / "new")
    assert result.exit_code == 1
    assert "targets.kept.top_k: expected 12, found 5" in result.stderr


def test_a_malformed_unit_range_is_refused(tmp_path: Path) -> None:
    result = run(
        *("cache-teacher", "--recipe", "demo", "--out", tmp_path / "a", "--units", "5"),
    )
    assert result.exit_code == 2
    assert "--units: '5': expected FIRST:END" in result.stderr
    assert not (tmp_path / "a").exists()
