"""The commands of README and docs: each is parsed as written, its settings by its recipe."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pipeline.cli import main
from pipeline.recipes.recipe import load_recipe, parse_override
from tests.support import ROOT

_IS_OURS = re.compile(r"(srun |torchrun .* -m )?pipeline ")
_PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
_BLOCK = re.compile(r"^```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def documented_commands() -> Iterator[list[str]]:
    """The arguments of every `pipeline` command in a code block of a page, once each."""
    found = set()
    for text in _PAGES.values():
        for block in _BLOCK.findall(text):
            for line in block.replace("\\\n", " ").splitlines():
                command = re.split(r" [|>] ", line)[0]
                words = shlex.split(command, comments=True) if _IS_OURS.match(line) else []
                if words:
                    found.add(tuple(words[words.index("pipeline") + 1 :]))
    yield from map(list, sorted(found))


def test_every_command_is_documented() -> None:
    by_make = {"demo"}
    assert {words[0] for words in documented_commands()} | by_make == set(main.commands)


def test_the_readme_has_at_most_200_lines() -> None:
    assert len(_PAGES["README.md"].splitlines()) <= 200


@pytest.mark.parametrize("words", list(documented_commands()), ids=" ".join)
def test_documented_commands_are_accepted_by_the_command_line(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for directory in (
        "fineweb-cache",
        "my-cache",
        *("my-run", "labels-alone", "demo-out/distilled"),
        "sampled-cache",
        "part-a",
        "part-b",
        *("run", "run-2", "runs", "mixed", "no-frobenius", "four-blocks", "sweep"),
        "my-parquet-directory",
        "my-model",
        *("student-results", "teacher-results", "math-cache", "code-cache"),
        *("align-cache", "aligned", "stem-cache", "chat-cache", "merged"),
    ):
        Path(directory).mkdir(parents=True)
    Path("fineweb.tar.zst").touch()
    Path("sweep.toml").touch()
    command = main.commands[words[0]]
    context: click.Context = command.make_context(words[0], words[1:])
    if "settings" in context.params:
        overrides = [parse_override(setting) for setting in context.params["settings"]]
        load_recipe(context.params["recipe_name"], overrides)


def test_documented_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {
        name for text in _PAGES.values() for name in re.findall(r"^make ([a-z-]+)", text, re.M)
    }
    assert {"demo", "test"} <= targets
    for target in targets:
        assert f"\n{target}:" in makefile, target


def test_no_placeholder_is_left_in_the_pages() -> None:
    for page, text in _PAGES.items():
        without_results = re.sub(r"<!-- (?:(?:results|figures):.*?|end) -->", "", text)
        assert not re.findall(r"<!--|\b[A-Z]+_(?:SENTENCE|SECTION)\b", without_results), page
