"""The pipeline's own commands, typed by a benchmark into a directory that it can go on from."""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import click

from cache_format.storage.atomic import publish_bytes
from pipeline.cli import main

compile_option = click.option(
    "--compile",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Of both stages, as recipes have it.",
)


def type_command(*words: object) -> str:
    """Run a command of the pipeline in a process of its own; returns its stdout.

    Raises ClickException where it fails, which has said why.
    """
    typed = _typed(words)
    command = [sys.executable, "-m", "pipeline", *typed]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    _require_success(typed, done.returncode)
    return done.stdout


def type_here(*words: object) -> str:
    """As ``type_command``, in this process: for commands shorter than PyTorch takes to import."""
    typed = _typed(words)
    with redirect_stdout(StringIO()) as printed:
        _require_success(typed, main.main(typed, "pipeline", standalone_mode=False))
    return printed.getvalue()


def _typed(words: Iterable[object]) -> list[str]:
    typed = list(map(str, words))
    click.echo(f"$ pipeline {' '.join(typed)}", err=True)
    return typed


def _require_success(typed: Sequence[str], status: int | None) -> None:
    if status:
        raise click.ClickException(
            f"pipeline {typed[0]} ended with status {status}; it said why. With --work, the same "
            "command goes on from what was made."
        )


def require_same_options(work: Path, options: Mapping[str, object]) -> None:
    """Keep ``options`` in ``work``, or raise UsageError where it was made with others."""
    work.mkdir(parents=True, exist_ok=True)
    kept = work / "options.json"
    if not kept.exists():
        publish_bytes(kept, json.dumps(options).encode())
        return
    found: dict[str, object] = json.loads(kept.read_text())
    if found != options:
        keys = [*options, *(key for key in found if key not in options)]
        differing = ", ".join(key for key in keys if options.get(key) != found.get(key))
        raise click.UsageError(
            f"--work {work}: what it has is of other options ({differing}). Take another directory."
        )
