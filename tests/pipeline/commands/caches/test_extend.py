"""``pipeline extend``."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import cache_format
from cache_format.metadata.recipe_file import seal_recipe
from pipeline.recipes.extended_recipe import extended_recipe
from pipeline.recipes.recipe import load_recipe
from tests.support.command_line import done, run
from tests.support.sample_cache import contents


@pytest.fixture
def cache(tiny_cache: Path, tmp_path: Path) -> Path:
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


def test_a_larger_budget_adds_shards_and_updates_the_recipe(cache: Path) -> None:
    before = cache_format.open(cache).manifest
    result = done("extend", cache, "--num-tokens", "2K")
    manifest = cache_format.open(cache).manifest
    assert manifest.num_tokens_requested == 2000
    assert manifest.shards[: len(before.shards)] == before.shards
    assert len(manifest.shards) > len(before.shards)
    assert load_recipe(str(cache / "recipe.toml")).cache_teacher.num_tokens == 2000
    assert f"--recipe {cache / 'recipe.toml'} --cache {cache}" in result.stdout


def test_a_budget_that_is_not_larger_is_refused_and_nothing_changes(cache: Path) -> None:
    before = contents(cache)
    result = run("extend", cache, "--tokens", "500")
    assert result.exit_code == 1
    assert "tokens: expected a larger budget, found 500" in result.stderr
    assert contents(cache) == before


def test_a_budget_that_is_no_number_is_refused(cache: Path) -> None:
    result = run("extend", cache, "--tokens", "many")
    assert result.exit_code == 2
    assert "--tokens many: expected a whole number" in result.stderr


def test_a_cache_of_the_whole_corpus_cannot_be_extended(cache: Path) -> None:
    done("extend", cache, "--tokens", "1B")
    result = run("extend", cache, "--tokens", "2B")
    assert result.exit_code == 1
    assert "holds the whole corpus" in result.stderr


@pytest.mark.parametrize(("name", "file"), [("teacher", "teacher"), ("corpus", "corpus.parquet")])
def test_a_moved_teacher_or_corpus_is_named_and_its_new_path_can_be_given(
    cache: Path, tmp_path: Path, name: str, file: str
) -> None:
    (tmp_path / "moved").mkdir()
    (cache.parent / file).rename(tmp_path / "moved" / file)
    result = run("extend", cache, "--tokens", "2K")
    assert result.exit_code == 1
    assert f"{name} '{cache.parent / file}', which {cache} was made from, is no" in result.stderr
    command = next(line for line in result.stderr.splitlines() if "pipeline cache-t" in line)
    words = command.replace("PATH", str(tmp_path / "moved" / file)).split()
    done(*words[1:])
    assert cache_format.open(cache).manifest.num_tokens_requested == 2000


def test_a_cache_without_a_recipe_is_refused(cache: Path) -> None:
    (cache / "recipe.toml").unlink()
    result = run("extend", cache, "--tokens", "2K")
    assert result.exit_code == 1
    assert "recipe.toml: missing. Extend it with the recipe" in result.stderr


def test_a_recipe_with_a_broken_seal_is_refused(cache: Path) -> None:
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
def test_a_sealed_recipe_that_does_not_parse_is_refused(
    cache: Path, text: str, problem: str
) -> None:
    cache_id = cache_format.open(cache).cache_id
    (cache / "recipe.toml").write_bytes(seal_recipe(text, cache_id))
    result = run("extend", cache, "--tokens", "2K")
    assert result.exit_code == 2
    assert f"Error: {cache / 'recipe.toml'}: " in result.stderr
    assert problem in result.stderr


def test_extend_prints_where_teacher_and_corpus_are_read_from(cache: Path) -> None:
    stderr = done("extend", cache, "--tokens", "2K").stderr
    assert f"the teacher is read from {str(cache.parent / 'teacher')!r}" in stderr
    assert f"the corpus from {str(cache.parent / 'corpus.parquet')!r}" in stderr


def test_hub_commits_are_those_of_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A branch in the recipe may have moved on; the spec has the commit."""
    opened = cache_format.open(cache)
    spec = opened.spec
    spec = replace(
        spec,
        teacher=replace(spec.teacher, revision="abc"),
        corpus=replace(spec.sole_corpus, revision="def"),
    )
    recipe = (cache / "recipe.toml").read_text()
    (cache / "recipe.toml").write_bytes(seal_recipe(recipe, spec.cache_id))
    opened.manifest = replace(opened.manifest, spec=spec)
    monkeypatch.setattr(cache_format, "open", lambda *_, **__: opened)
    config = extended_recipe(cache, "2K").cache_teacher
    assert (config.teacher_revision, config.corpus_revision) == ("abc", "def")
