"""The commands that repeat the results: those of the results page and of the experiments parse."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from benchmarks.__main__ import main as benchmarks
from benchmarks.compare_option import compared_settings
from pipeline.ablation.planning.planned_runs import Problems, plan_runs
from pipeline.ablation.planning.sweep import load_sweep
from pipeline.cli import main as pipeline
from pipeline.recipes.recipe import load_recipe, parse_override
from tests.support import ROOT

_COMMAND = re.compile(r"(?:python -m (benchmarks)|(pipeline)) (?=[a-z])")
_IN_TEXT = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_BLOCK = re.compile(r"^```\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_DIRECTORIES = (
    *("TEACHER", "TEXT", "CACHE", "pipeline/demo/teacher", "real-teacher"),
    *("demo-out/cache", "demo-out/small-cache", "demo-out/corpus", "demo-out/aligned"),
    *(f"demo-out/{path.stem}" for path in (ROOT / "benchmarks/experiments").glob("*.toml")),
)


def commands() -> Iterator[str]:
    """Every command of the page and of the experiments' first comments, once each."""
    page = (ROOT / "docs/results.md").read_text("utf-8")
    found = [" ".join(text.split()) for text in _IN_TEXT.findall(_BLOCK.sub("", page))]
    blocks = _BLOCK.findall(page)
    for path in sorted((ROOT / "benchmarks/experiments").glob("*.toml")):
        lines = path.read_text("utf-8").splitlines()
        blocks.append("\n".join(line[1:].strip() for line in lines if line.startswith("#")))
    found += [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    yield from sorted({text for text in found if _COMMAND.match(text)})


def test_commands_are_found() -> None:
    found = list(commands())
    assert "python -m benchmarks stage-one" in found
    assert any(text.startswith("pipeline ablate") and "--dry-run" in text for text in found)
    assert any("--compare hidden_projection=pca" in text for text in found)


@pytest.mark.parametrize("text", list(commands()))
def test_commands_are_accepted(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for directory in _DIRECTORIES:
        Path(directory).mkdir(parents=True, exist_ok=True)
    for experiment in (ROOT / "benchmarks/experiments").glob("*.toml"):
        copy = tmp_path / experiment.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(experiment.read_bytes())
    Path("FILE").touch()
    own, name, *words = shlex.split(text.removeprefix("python -m "), comments=True)
    command = {"benchmarks": benchmarks, "pipeline": pipeline}[own].commands[name]
    if words == ["--help"]:
        return
    context: click.Context = command.make_context(name, words.copy())
    settings = [parse_override(setting) for setting in context.params.get("settings", ())]
    load_recipe(context.params.get("recipe_name", "demo"), settings)
    compared_settings(context.params.get("compared", ()))
    if baseline := context.params.get("baseline"):
        (sweep,) = (ROOT / "benchmarks/experiments").glob(f"{Path(words[0]).name}.toml")
        assert baseline in {point.name for point in plan_runs(load_sweep(sweep), Problems()).points}
