"""An option that takes one value is refused when it is given twice, whatever the command."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pipeline.cli import main


def options(*, is_repeatable: bool) -> Iterator[tuple[str, str]]:
    """Command and option, for every option of every command but --help."""
    for name, command in main.commands.items():
        for parameter in command.params:
            if not isinstance(parameter, click.Option):
                continue
            if (parameter.multiple or parameter.is_flag) is is_repeatable:
                yield name, max(parameter.opts, key=len)


@pytest.mark.parametrize(("command", "option"), list(options(is_repeatable=False)))
def test_an_option_of_a_single_value_given_twice_is_refused(command: str, option: str) -> None:
    result = CliRunner().invoke(main, [command, option, "1", f"{option}=2"])
    assert result.exit_code == 2
    assert re.search(rf"Option .*{option}\b.* was given 2 times; it takes one value", result.stderr)
    assert f"Usage: main {command} " in result.stderr


def test_two_spellings_count_as_the_same_option() -> None:
    words = ["extend", "cache", "--tokens", "1B", "--num-tokens", "2B"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert "Option --tokens / --num-tokens was given 2 times" in result.stderr


@pytest.mark.parametrize(("command", "option"), list(options(is_repeatable=True)))
def test_repeatable_options_may_be_repeated(
    command: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Flags are enough for some commands to run, and one of them is the demo.
    monkeypatch.setattr(main.commands[command], "callback", lambda *_, **__: None)
    value = ["train_student.seed=1"] if option == "--set" else []
    result = CliRunner().invoke(main, [command, option, *value, option, *value])
    assert "it takes one value" not in result.stderr


def test_repeated_options_are_refused_within_the_demo_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "pipeline.demo.run.run_demo",
        lambda out, command, **_: command(["estimate", "--seconds", "1", "--seconds", "2"]),
    )
    result = CliRunner().invoke(main, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "Option --seconds was given 2 times" in result.stderr
