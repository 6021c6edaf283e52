"""Outputs inside of a cache that is read are refused, also where a link leads there."""

from collections.abc import Callable
from pathlib import Path

import pytest

import cache_format
from cache_format.errors import ForeignDirectoryError
from cache_format.storage.open import storage_at
from cache_format.tools.inside import require_outside
from cache_format.tools.merge import merge
from cache_format.tools.parquet_export import Export, export_parquet
from tests.support.sample_cache import contents, write_sample_cache


@pytest.mark.parametrize("place", ["cache/out", "cache/a/b", "cache/shards", "link/out", "at/x"])
@pytest.mark.parametrize("tool", ["merge", "export"])
def test_nothing_is_written(root: Path, tmp_path: Path, place: str, tool: str) -> None:
    (tmp_path / "link").symlink_to(root)
    (tmp_path / "at").symlink_to(root / "shards")
    before, entries = contents(root), sorted(root.rglob("*"))
    cache, out = cache_format.open(root), tmp_path / place
    write_sample_cache(tmp_path / "first")
    first = cache_format.open(tmp_path / "first")
    work: dict[str, Callable[[], object]] = {
        "merge": lambda: merge([first, cache], out),
        "export": lambda: export_parquet(cache, out, Export()),
    }
    with pytest.raises(ForeignDirectoryError, match=r"lies in the cache .*Choose another dir"):
        work[tool]()
    assert contents(root) == before
    assert sorted(root.rglob("*")) == entries


def test_a_cache_that_is_reached_by_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    with pytest.raises(ForeignDirectoryError, match="lies in the cache"):
        merge([cache_format.open(tmp_path / "link")], root / "out")
    assert not (root / "out").exists()


def test_shards_that_lie_elsewhere(root: Path, tmp_path: Path) -> None:
    (root / "shards").rename(tmp_path / "disk")
    (root / "shards").symlink_to(tmp_path / "disk")
    with pytest.raises(ForeignDirectoryError, match="lies in the cache"):
        require_outside(tmp_path / "disk/out", storage_at(root))


def test_an_exported_split_that_is_the_cache(tmp_path: Path) -> None:
    """``out`` is beside the cache, but ``out/train`` is the cache."""
    write_sample_cache(tmp_path / "train")
    with pytest.raises(ForeignDirectoryError, match="train: lies in the cache"):
        export_parquet(cache_format.open(tmp_path / "train"), tmp_path, Export())
    assert not list(tmp_path.rglob("*.parquet"))
    assert not (tmp_path / "train/train").exists()


@pytest.mark.parametrize(
    ("output", "root", "is_inside"),
    [
        ("memory://a/b", "memory://a", True),
        ("memory://a/", "memory://a", True),
        ("memory://ab", "memory://a", False),
        ("memory://a", "memory://a/b", False),
        ("/a/b", "memory://a", False),
    ],
)
def test_urls(output: str, root: str, is_inside: bool) -> None:
    storage = storage_at(root)
    if not is_inside:
        require_outside(output, storage)
        return
    with pytest.raises(ForeignDirectoryError, match="lies in the cache"):
        require_outside(output, storage)


def test_a_file_url_is_a_directory(root: Path) -> None:
    with pytest.raises(ForeignDirectoryError, match="lies in the cache"):
        require_outside(root / "out", storage_at(f"file://{root}"))
    require_outside(root.parent / "cache2", storage_at(root))
