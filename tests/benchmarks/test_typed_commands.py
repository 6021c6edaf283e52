"""Commands that benchmarks type, and the options that a directory of theirs keeps."""

from collections.abc import Callable
from pathlib import Path

import click
import pytest

from benchmarks.typed_commands import require_same_options, type_command, type_here


@pytest.mark.parametrize("type_it", [type_command, type_here])
def test_what_a_command_prints_is_returned(type_it: Callable[..., str]) -> None:
    assert type_it("recipes", "demo").startswith("description = ")
    assert "distil-xlstm" in type_it("recipes")


@pytest.mark.parametrize("type_it", [type_command, type_here])
def test_a_command_that_fails_is_named(type_it: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(click.ClickException, match="pipeline inspect ended with status 1"):
        type_it("inspect", tmp_path)


@pytest.mark.parametrize(
    ("options", "differing"),
    [({"a": 2, "b": 1}, "a"), ({"a": 1}, "b"), ({"a": 1, "b": 1, "c": 3}, "c")],
)
def test_a_directory_keeps_its_options(
    options: dict[str, int], differing: str, tmp_path: Path
) -> None:
    for _ in range(2):
        require_same_options(tmp_path, {"a": 1, "b": 1})
    with pytest.raises(click.UsageError, match=rf"of other options \({differing}\)"):
        require_same_options(tmp_path, options)
