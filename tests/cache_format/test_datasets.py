"""Shards are ordinary Arrow files: Hugging Face ``datasets`` opens them as they are."""

from pathlib import Path

import datasets
import pytest

import cache_format
from tests.support.sample_cache import sample_spec, write_sample_cache


@pytest.mark.parametrize("with_sketch", [True, False])
def test_the_datasets_library_opens_the_shards(tmp_path: Path, with_sketch: bool) -> None:
    spec = write_sample_cache(tmp_path / "cache", sample_spec(with_sketch=with_sketch))
    files = [str(path) for path in sorted((tmp_path / "cache" / "shards").iterdir())]
    rows = datasets.load_dataset(
        "arrow", data_files=files, split="train", cache_dir=str(tmp_path / "datasets")
    )
    cache = cache_format.open(tmp_path / "cache")
    assert rows.num_rows == cache.num_rows("train") + cache.num_rows("validation")
    assert ("sketch" in rows.column_names) == with_sketch
    _, first = cache.read_row("validation", 0)
    assert rows[0]["document_starts"] == first.document_starts.tolist()
    assert spec.cache_id == cache.cache_id
