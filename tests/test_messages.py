"""The layer below the command line says what is wrong, and knows no command and no option."""

import ast
import re
from collections.abc import Iterator

import click
import pytest

from cache_format.errors import Action, NextStep
from pipeline.cli import main
from pipeline.runtime.next_steps import how_to
from stages.next_steps import StageAction
from tests.support import ROOT

_OPTIONS = {
    option
    for command in (main, *main.commands.values())
    for parameter in command.params
    if isinstance(parameter, click.Option)
    for option in parameter.opts
    if option.startswith("--")
}
_COMMAND = re.compile(rf"`?\bpipeline ({'|'.join(main.commands)})\b|`pipeline\b")
_OPTION = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, sorted(_OPTIONS)))})(?![\w-])")


def strings(package: str) -> Iterator[tuple[str, str]]:
    """Where each string literal lies, docstrings and parts of f-strings included, and its text."""
    for path in sorted((ROOT / package).rglob("*.py")):
        name = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield name, node.value


def named(text: str) -> list[str]:
    """The commands and options that ``text`` names."""
    return [found[0] for pattern in (_COMMAND, _OPTION) for found in pattern.finditer(text)]


@pytest.mark.parametrize("package", ["cache_format", "stages"])
def test_library_messages_name_no_command_or_option(package: str) -> None:
    naming = {(name, word) for name, text in strings(package) for word in named(text)}
    assert naming == set()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Run `pipeline merge` or `pipeline`.", ["`pipeline merge", "`pipeline"]),
        ("Choose another --out.", ["--out"]),
        ("--set a.b=1 --resume", ["--set", "--resume"]),
        ("hf download --repo-type dataset --local-dir x", []),
        ("a --outer", []),
    ],
)
def test_the_search_finds_commands_and_options_in_text(text: str, expected: list[str]) -> None:
    assert named(text) == expected


def test_next_steps_added_by_the_command_line_are_valid_commands() -> None:
    """Each line names commands and options that there are."""
    every = [NextStep("", action) for action in (*Action, *StageAction)]
    for command in main.commands:
        for line in how_to(every, command):
            assert set(re.findall(r"--[a-z-]+", line)) <= _OPTIONS, line
            assert set(re.findall(r"`pipeline ([a-z-]+)", line)) <= set(main.commands), line
