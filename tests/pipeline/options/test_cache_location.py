"""What is taken for a path, what for a URL, and what is refused as neither."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.options.cache_location import CacheLocation, LocalPath

_NEW_CACHE = CacheLocation(exists=False)


@pytest.mark.parametrize(
    "value", ["cache", "/a/b:/c", "./s3:/bucket", "a:b", "C:/x", "dir/s3:/x", "-"]
)
def test_local_paths_are_accepted(value: str) -> None:
    assert LocalPath().convert(value, None, None) == Path(value)
    assert _NEW_CACHE.convert(value, None, None) == Path(value)


@pytest.mark.parametrize("value", ["s3://bucket/c", "memory://x", "file:///tmp/c"])
def test_urls_are_accepted_for_caches_alone(value: str) -> None:
    assert _NEW_CACHE.convert(value, None, None) == value
    with pytest.raises(click.BadParameter, match="only a local path"):
        LocalPath().convert(value, None, None)


@pytest.mark.parametrize(
    ("value", "meant"),
    [("s3:/bucket/c", "s3://bucket/c"), ("S3://bucket", "s3://bucket"), ("Gs:/b", "gs://b")],
)
@pytest.mark.parametrize("exists", [True, False])
def test_a_misspelled_url_is_refused_with_the_right_spelling(
    value: str, meant: str, exists: bool
) -> None:
    with pytest.raises(click.BadParameter, match=f"did you mean '{meant}'"):
        CacheLocation(exists=exists).convert(value, None, None)


@pytest.mark.parametrize(
    "arguments",
    [
        ("train-student", "--recipe", "demo", "--cache", ".", "--out", "s3://b/run"),
        ("export", ".", "s3://b/parquet"),
        ("pack", ".", "s3://b/c.tar.zst"),
        ("unpack", "s3://b/c.tar.zst", "cache"),
        ("demo", "--out", "s3://b/demo"),
        ("merge", ".", "--out", "s3:/b/c"),
        ("extend", "s3:/b/c", "--num-tokens", "1B"),
        ("cache-teacher", "--recipe", "demo", "--out", "S3://b/c"),
    ],
)
def test_a_url_is_refused_where_a_command_needs_a_local_path(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "Invalid value for" in result.stderr
    assert "looks like a URL" in result.stderr or "did you mean" in result.stderr
    assert not list(tmp_path.iterdir())
