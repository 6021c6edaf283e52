"""``Cache.verify`` names every problem and reports how far it is."""

import io
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import cache_format
from cache_format.errors import CorruptFileError
from cache_format.metadata import layout
from cache_format.metadata.recipe_file import read_recipe, seal_recipe
from cache_format.storage.base import Storage
from cache_format.storage.local import LocalStorage
from cache_format.tools.archive import pack
from cache_format.tools.merge import merge
from cache_format.tools.verify import verify
from cache_format.writer import CacheWriter
from tests.support.sample_cache import (
    reseal,
    sample_row,
    sample_shared,
    sample_spec,
    shard_path,
)

SPEC = sample_spec()


def test_a_whole_cache_has_no_problems(root: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert verify(cache_format.open(root), lambda done, total: seen.append((done, total))) == []
    total = sum(p.stat().st_size for d in ("shards", "teacher") for p in (root / d).rglob("*.*"))
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


def test_every_problem_is_named(root: Path) -> None:
    cut, missing, orphan = shard_path(root, 1), shard_path(root, 0), root / "shards/x.arrow"
    cut.write_bytes(cut.read_bytes()[:-1])
    missing.unlink()
    orphan.write_bytes(b"")
    (root / "shards/.tmp-half").write_bytes(b"half-written files are no damage")
    (root / "receipts/00000.json.bak").write_bytes(b"")
    (root / "notes.txt").mkdir()
    (root / "notes.txt" / "within").write_bytes(b"a foreign directory is named once")
    (root / "teacher/more").write_bytes(b"")
    (root / "spec.json").write_bytes(b"{}")
    seen: list[tuple[int, int]] = []
    problems = verify(cache_format.open(root), lambda done, total: seen.append((done, total)))
    assert [problem.path for problem in problems] == [
        root / "spec.json",
        missing,
        cut,
        root / "notes.txt",
        root / "receipts/00000.json.bak",
        root / "shards/.tmp-half",
        orphan,
        root / "teacher/more",
    ]
    assert all(str(problem.path) in problem.message for problem in problems)
    assert [problem.is_damage for problem in problems] == [True] * 3 + [False] * 5
    assert "an incomplete file, which is harmless" in problems[5].message
    assert "nothing refers to it" in problems[6].message
    assert seen[-1][0] == seen[-1][1]


def test_shards_finished_after_the_manifest_are_verified_too(root: Path) -> None:
    CacheWriter.create_or_open(root, SPEC, sample_shared()).write_unit(
        4, [sample_row(0, SPEC)], num_documents=1
    )
    assert verify(cache_format.open(root)) == []
    path = shard_path(root, 4)
    path.write_bytes(path.read_bytes()[:-1])
    assert [problem.path for problem in verify(cache_format.open(root))] == [path]


def test_a_manifest_damaged_after_opening_is_a_problem(root: Path) -> None:
    cache = cache_format.open(root)
    (root / "manifest.json").write_bytes(b"{}")
    assert [problem.path for problem in verify(cache)] == [root / "manifest.json"]


def test_a_spec_of_another_cache_is_a_problem(root: Path, tmp_path: Path) -> None:
    CacheWriter.create_or_open(tmp_path / "other", replace(SPEC, seed=8), sample_shared())
    (root / "spec.json").write_bytes((tmp_path / "other/spec.json").read_bytes())
    (problem,) = verify(cache_format.open(root))
    assert problem.path == root / "spec.json"
    assert "of another cache" in problem.message


def test_a_rank_table_damaged_after_reading_is_a_problem(root: Path) -> None:
    cache = cache_format.open(root)
    cache.read_row("train", 0)
    path = root / "ranks.bin"
    path.write_bytes(bytes(path.stat().st_size))
    (problem,) = verify(cache)
    assert problem.path == path
    path.unlink()
    (problem,) = verify(cache)
    assert "ranks.bin: missing" in problem.message


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_rows", 3), ("num_tokens", 36), ("num_documents", 11), ("corpus_position", "elsewhere")],
)
def test_a_manifest_that_contradicts_its_receipts_is_a_problem(
    root: Path, field: str, value: object
) -> None:
    def change(fields: dict[str, Any]) -> None:
        fields["shards"][1][field] = value

    reseal(root / "manifest.json", change)
    cache = cache_format.open(root)
    (problem,) = verify(cache)
    assert "manifest.json: disagrees about unit 1 with receipts/00001.json" in problem.message
    assert "made again, from the receipts" in problem.message
    with pytest.raises(CorruptFileError, match="disagrees about unit 1"):
        cache.read_row("train", 0)


def test_a_missing_spec_is_a_problem(root: Path) -> None:
    (root / "spec.json").unlink()
    (problem,) = verify(cache_format.open(root))
    assert "spec.json: missing" in problem.message


class TestRecipe:
    @pytest.fixture
    def recipe(self, root: Path) -> Path:
        writer = CacheWriter.create_or_open(root, SPEC, sample_shared())
        writer.write_recipe('[cache_teacher]\nteacher = "größer"')
        return root / "recipe.toml"

    def test_an_intact_or_rewritten_recipe_is_no_problem(self, root: Path, recipe: Path) -> None:
        assert verify(cache_format.open(root)) == []
        assert tomllib.loads(recipe.read_text("utf-8"))["cache_teacher"] == {"teacher": "größer"}
        CacheWriter.create_or_open(root, SPEC, sample_shared()).write_recipe("# a longer budget\n")
        assert verify(cache_format.open(root)) == []

    def test_every_flipped_bit_and_truncation_of_the_recipe_is_a_problem(
        self, root: Path, recipe: Path
    ) -> None:
        cache, data = cache_format.open(root), recipe.read_bytes()
        flipped = [
            data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
            for at in range(len(data))
            for bit in range(8)
        ]
        cut = [data[:length] for length in range(len(data))]
        for changed in (*flipped, *cut, data + b"\n"):
            with pytest.raises(CorruptFileError, match=r"recipe\.toml: its .*seal.*delete it"):
                read_recipe(
                    _StorageOfBytes(cache.storage, changed), cache.cache_id, layout.RECIPE_STEP
                )
        recipe.write_bytes(flipped[0])
        (problem,) = verify(cache)
        assert (problem.path, problem.is_damage) == (recipe, True)

    def test_the_recipe_of_another_cache_is_a_problem(
        self, root: Path, recipe: Path, tmp_path: Path
    ) -> None:
        spec = replace(SPEC, seed=8)
        CacheWriter.create_or_open(tmp_path / "other", spec, sample_shared()).write_recipe("# a\n")
        recipe.write_bytes((tmp_path / "other/recipe.toml").read_bytes())
        (problem,) = verify(cache_format.open(root))
        assert "its seal does not match" in problem.message

    def test_an_oversized_recipe_is_a_problem(self, root: Path, recipe: Path) -> None:
        recipe.write_bytes(seal_recipe("#" * (1 << 20), SPEC.cache_id))
        (problem,) = verify(cache_format.open(root))
        assert "more than 1048576" in problem.message

    def test_a_recipe_that_links_elsewhere_is_not_copied(
        self, root: Path, recipe: Path, tmp_path: Path
    ) -> None:
        """A link to a file of whoever packs, which would leave the machine with the archive."""
        secret = tmp_path / "secret.toml"
        secret.write_text('key = "mine"\n')
        recipe.unlink()
        recipe.symlink_to(secret)
        cache = cache_format.open(root)
        with pytest.raises(CorruptFileError, match="its last line is not a seal"):
            pack(cache, io.BytesIO(), num_threads=1, report=lambda done, total: None)
        with pytest.raises(CorruptFileError, match="its last line is not a seal"):
            merge([cache], tmp_path / "out")
        assert not (tmp_path / "out/recipe.toml").exists()


class _StorageOfBytes(LocalStorage):
    """A cache whose small files hold other bytes, without writing them each time."""

    def __init__(self, storage: Storage, data: bytes) -> None:
        super().__init__(Path(storage.root))
        self._data = data

    def read(self, name: str) -> bytes:
        return self._data
