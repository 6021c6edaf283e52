"""A student that the demo trains by an ordinary command, and what its validations said."""

import json
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

Command = Callable[[Sequence[str]], None]
"""Runs one command line of this program."""


@dataclass(frozen=True)
class Student:
    """A finished run: its name and directory, its validations by step, and what it took."""

    name: str
    directory: Path
    validations: list[dict[str, float]]
    seconds: float

    @property
    def last(self) -> dict[str, float]:
        """The validation of the last step."""
        return self.validations[-1]

    @property
    def rows_per_step(self) -> int:
        """Rows of the cache that one optimizer step reads."""
        recipe = tomllib.loads((self.directory / "recipe.toml").read_text(encoding="utf-8"))
        settings = recipe["train_student"]
        rows: int = settings["batch_size"] * settings["gradient_accumulation_steps"]
        return rows

    @property
    def num_rows(self) -> int:
        """Rows that it was trained on, repetitions included."""
        return int(self.last["step"]) * self.rows_per_step

    def after(self, num_rows: int) -> dict[str, float]:
        """The first validation after ``num_rows`` rows; the last one, if there were never so many.

        A student is rather compared after too many than too few.
        """
        rows_per_step = self.rows_per_step
        enough = (row for row in self.validations if row["step"] * rows_per_step >= num_rows)
        return next(enough, self.last)


def train(command: Command, name: str, directory: Path, arguments: Sequence[str]) -> Student:
    """Train the student of ``arguments`` in ``directory``, or go on with it."""
    begin = time.monotonic()
    type_command(command, ("train-student", *arguments, "--out", str(directory), "--resume"))
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    validations = [row for row in map(json.loads, lines) if "validation/loss" in row]
    return Student(name, directory, validations, time.monotonic() - begin)


def type_command(command: Command, arguments: Sequence[str]) -> None:
    """Show a command line, and run it."""
    click.secho(f"\n$ pipeline {' '.join(arguments)}", bold=True)
    command(arguments)
