"""The README's commands: each is parsed as written, and its settings by the recipe it names."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pipeline.cli import main
from pipeline.recipe import load_recipe, parse_override

_IS_OURS = re.compile(r"(srun |torchrun .* -m )?pipeline ")
_README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def readme_commands() -> Iterator[list[str]]:
    for block in re.findall(r"^```\w*\n(.*?)^```$", _README, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.partition(" | ")[0]
            words = shlex.split(command, comments=True) if _IS_OURS.match(line) else []
            if words:
                yield words[words.index("pipeline") + 1 :]


def test_there_are_commands() -> None:
    assert {words[0] for words in readme_commands()} == {
        *("cache-teacher", "train-student", "generate", "inspect", "verify", "estimate"),
        *("pack", "unpack", "extend", "export", "merge", "evaluate", "push"),
    }


@pytest.mark.parametrize("words", list(readme_commands()), ids=" ".join)
def test_a_command_is_accepted_as_written(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for directory in (
        "fineweb-cache",
        "sampled-cache",
        "part-a",
        "part-b",
        "run",
        "my-parquet-directory",
        "my-model",
    ):
        Path(directory).mkdir()
    Path("fineweb.tar.zst").touch()
    command = main.commands[words[0]]
    context: click.Context = command.make_context(words[0], words[1:])
    if "recipe_name" in context.params:
        overrides = [parse_override(setting) for setting in context.params["settings"]]
        load_recipe(context.params["recipe_name"], overrides)


def test_make_targets_exist() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([a-z-]+)", _README, re.MULTILINE):
        assert f"\n{target}:" in makefile, target


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.findall(r"<!--|\b[A-Z]+_(?:SENTENCE|SECTION)\b", _README)
