"""Every benchmark has ``--quick``, over which what is typed wins, and its output says so."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.quick import after_quick, quick_option, show
from tests.support import ROOT
from tests.support.golden_cache import GOLDEN

_OF_GPU = {"environment", "gpu", "gpu-report", "inputs", "kernels"}
"""The GPU's benchmark, which has ``--tiny``, and its parts."""
_CALCULATED = {"break-even", "results"}
"""Of figures that there are: nothing is measured."""
NAMES = sorted(main.commands.keys() - _OF_GPU - _CALCULATED)
LIMIT_SECONDS = 480  # four times what is promised of an idle machine


def parameters(name: str, *words: str) -> dict[str, Any]:
    """What the command would be called with."""
    arguments = [str(GOLDEN / "top_k")] if name == "kept-ids" else []
    command = main.commands[name]
    return command.make_context(name, [*arguments, *words]).params


def amount(value: Any) -> float:
    """A number for a size, be it one number, several in a text, or several texts."""
    match value:
        case None:
            return float("inf")  # as many as there are
        case bool() | int():
            return float(value)
        case str():
            return sum(int(part) for part in value.split(","))
        case tuple():
            return float(sum(value))
    raise AssertionError(f"{value!r} is no size")


# Those whose values are no amounts: settings, and names of dimensions, devices and modes.
_NO_SIZES = {"settings", "compared", "preset", "device", "compile", "compile_mode"}


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_has_smaller_sizes_when_quick(name: str) -> None:
    full, quick = parameters(name), parameters(name, "--quick")
    changed = {key for key in full if quick[key] != full[key]}
    sizes = changed - _NO_SIZES
    assert sizes
    assert all(amount(quick[key]) < amount(full[key]) for key in sizes)


@pytest.mark.parametrize(
    "name",
    sorted({*NAMES} - {"bytes", "experts", "hybrid-students", "kept-ids", "online", "recall"}),
)
def test_what_is_typed_wins_over_quick(name: str) -> None:
    for words in (("--quick", "--repeats", "37"), ("--repeats", "37", "--quick")):
        assert parameters(name, *words)["repeats"] == 37


@pytest.mark.parametrize("name", ["online", "bytes"])
def test_settings_are_added_to_the_quick_ones(name: str) -> None:
    quick = parameters(name, "--quick")["settings"]
    assert parameters(name, "--quick", "--set", "a.b=c")["settings"] == (*quick, "a.b=c")
    assert parameters(name, "--set", "a.b=c")["settings"] == ("a.b=c",)


@click.command("made-up")
@quick_option(repeats=2, is_long=False, names=("a=b", "c"))
@click.option("--repeats", type=int, default=9)
@click.option("--long/--short", "is_long", default=True)
@click.option("--name", "names", multiple=True, callback=after_quick)
@click.option("--json", "as_json", is_flag=True)
def made_up(repeats: int, is_long: bool, names: tuple[str, ...], as_json: bool) -> None:
    show({"seconds": repeats, "is_long": is_long, "names": names}, as_json)


def test_a_quick_run_says_so_and_with_which_sizes() -> None:
    result = CliRunner().invoke(made_up, ["--quick", "--repeats", "3"], catch_exceptions=False)
    first, *lines = result.output.splitlines()
    assert first == "Rough figures, by --quick: --repeats 3 --short --name a=b --name c"
    assert [line.split() for line in lines][:2] == [["seconds", "3"], ["is_long", "False"]]
    figures = json.loads(CliRunner().invoke(made_up, ["--json", "--quick"]).output)
    assert figures["quick"] is True
    assert figures["quick_options"] == "--repeats 2 --short --name a=b --name c"
    assert figures["seconds"] == 2


def test_a_full_run_says_nothing_of_it() -> None:
    figures = json.loads(CliRunner().invoke(made_up, ["--json"]).output)
    assert figures == {"seconds": 9, "is_long": True, "names": []}
    assert "Rough" not in CliRunner().invoke(made_up, []).output


def test_the_help_names_the_sizes() -> None:
    text = " ".join(CliRunner().invoke(made_up, ["--help"]).output.split())
    assert "two slow cores: --repeats 2 --short --name a=b --name c." in text


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_ends_soon_when_quick(name: str, tiny_cache: Path) -> None:
    arguments = [str(tiny_cache)] if name == "kept-ids" else []
    command = [sys.executable, "-m", "benchmarks", name, *arguments, "--quick", "--json"]
    done = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=LIMIT_SECONDS,
    )
    figures = json.loads(done.stdout)
    assert figures["quick"] is True
    assert len(figures) > 2
    if name != "slstm":  # it is over before it could be asked for
        assert "elapsed, about" in done.stderr
