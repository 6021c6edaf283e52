"""The command line, called as a person types it, in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from pipeline.cli import main


def run(
    *arguments: str | Path, stdin: bytes | None = None, env: dict[str, str] | None = None
) -> Result:
    """What ``pipeline`` says to ``arguments``, and its exit code."""
    return CliRunner().invoke(main, [str(word) for word in arguments], input=stdin, env=env)


def done(*arguments: str | Path, stdin: bytes | None = None) -> Result:
    """``run`` of a command that succeeds."""
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result


def fail_with(error: BaseException) -> Callable[..., Any]:
    """A function that takes anything and raises ``error``."""

    def failing(*_: object, **__: object) -> None:
        raise error

    return failing
