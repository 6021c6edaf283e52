"""``pipeline export``."""

from pathlib import Path

import pyarrow.parquet as pq

import cache_format
from tests.support.command_line import done, run


def test_export_writes_parquet_files_of_the_chosen_split_without_sketches(
    tiny_cache: Path, tmp_path: Path
) -> None:
    result = done("export", tiny_cache, tmp_path / "out", "--split", "train", "--no-sketch")
    files = sorted((tmp_path / "out/train").iterdir())
    assert f"{len(files)} parquet files (" in result.stdout
    assert "100.0%" in result.stderr
    assert not (tmp_path / "out/validation").exists()
    rows = sum(pq.read_metadata(path).num_rows for path in files)
    assert rows == cache_format.open(tiny_cache).num_rows("train")
    assert "sketch" not in pq.read_schema(files[0]).names


def test_an_unknown_export_format_is_refused(tiny_cache: Path, tmp_path: Path) -> None:
    result = run("export", tiny_cache, tmp_path / "out", "--format", "csv")
    assert result.exit_code == 2
