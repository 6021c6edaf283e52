"""The demo: one teacher cached once, two students trained from that cache, and a comparison.

Nothing here computes anything: it writes the corpus, types the ordinary commands, and reads what
they left. Everything lies under one directory, and a second run reuses what it finds there.
"""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from pipeline.demo.corpus import write_parquet
from pipeline.demo.student import Student

TEACHER = Path(__file__).parent / "teacher"
_CORPUS_CHARS = 9_000_000
_LABELS_ALONE = (
    *("--set", "train_student.alpha_start=0.0", "--set", "train_student.alpha_end=0.0"),
    *("--set", "train_student.beta_start=0.0", "--set", "train_student.beta_end=0.0"),
)

Command = Callable[[Sequence[str]], None]


def run_demo(out: Path, command: Command, *, seed: int = 0) -> None:
    """Run the demo into ``out``; ``command`` runs one command line of this program."""
    corpus, cache = out / "corpus", out / "cache"
    seconds = {"corpus": _timed(lambda: _write_corpus(corpus))}
    seconds["cache"] = _timed(lambda: _type(command, _cache_arguments(cache, corpus)))
    students = []
    suffix = f"-seed{seed}" if seed else ""
    for name, extra in (("distilled", ()), ("labels", _LABELS_ALONE)):
        directory = out / f"{name}{suffix}"
        arguments = (
            *("train-student", "--recipe", "demo", "--cache", str(cache)),
            *("--out", str(directory), "--resume", "--set", f"train_student.seed={seed}"),
            *extra,
        )
        spent = _timed(lambda arguments=arguments: _type(command, arguments))  # type: ignore[misc]
        students.append(Student(name, directory, _validations(directory), spent))
        seconds[name] = spent
    _report(out, suffix, cache, students, seconds)


def _cache_arguments(cache: Path, corpus: Path) -> Sequence[str]:
    return (
        *("cache-teacher", "--recipe", "demo", "--out", str(cache)),
        *("--set", f"cache_teacher.teacher={json.dumps(str(TEACHER))}"),
        *("--set", f"cache_teacher.corpus={json.dumps(str(corpus))}"),
    )


def _type(command: Command, arguments: Sequence[str]) -> None:
    click.secho(f"\n$ pipeline {' '.join(arguments)}", bold=True)
    command(arguments)


def _timed(action: Callable[[], Any]) -> float:
    begin = time.monotonic()
    action()
    return time.monotonic() - begin


def _write_corpus(corpus: Path) -> None:
    target = corpus / "python-documentation.parquet"
    if target.exists():
        return
    click.echo(f"Writing the documentation text of this Python to {target} …")
    corpus.mkdir(parents=True, exist_ok=True)
    num_chars = write_parquet(target, "demo", _CORPUS_CHARS)
    click.echo(f"{num_chars / 1e6:.1f} million characters.")


def _validations(run: Path) -> list[dict[str, float]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if "validation/loss" in row]


def _report(
    out: Path, suffix: str, cache: Path, students: list[Student], seconds: dict[str, float]
) -> None:
    """The table, the plot and the next commands."""
    from pipeline.demo.plot import plot

    distilled, labels = students
    untrained = labels.validations[0]
    rows = [
        ("teacher", untrained["validation/teacher_loss"], 0.0, 1.0),
        *(_row(f"student, {s.name}", s.last) for s in students),
        _row("student, untrained", untrained),
    ]
    click.secho(
        f"\n{'':22}{'validation loss':>16}{'perplexity':>12}{'KL to teacher':>15}{'agreement':>11}",
        bold=True,
    )
    for name, loss, kl, agreement in rows:
        click.echo(f"{name:22}{loss:16.4f}{math.exp(loss):12.1f}{kl:15.4f}{agreement:11.1%}")
    gain = labels.last["validation/loss"] - distilled.last["validation/loss"]
    steps = int(distilled.last["step"])
    click.echo(
        f"\nAt equal steps ({steps}) the student distilled from the cache is {gain:.4f} nats "
        f"{'below' if gain >= 0 else 'ABOVE'} the one trained on labels alone."
    )
    manifest = json.loads((cache / "manifest.json").read_text())
    num_bytes = sum(shard["num_bytes"] for shard in manifest["shards"])
    num_tokens = sum(shard["num_tokens"] for shard in manifest["shards"])
    click.echo(
        f"Cache: {num_tokens:,} tokens, {num_bytes / 1e6:.1f} MB, "
        f"{num_bytes / num_tokens:.1f} bytes/token.\n"
        f"Time: {', '.join(f'{name} {spent:.0f} s' for name, spent in seconds.items())}."
    )
    picture = out / f"demo{suffix}.png"
    plot(picture, students, distilled.directory / "metrics.jsonl")
    (out / f"results{suffix}.json").write_text(
        json.dumps({"rows": rows, "gain_nats": gain, "seconds": seconds}, indent=1) + "\n"
    )
    click.echo(f"Curves and schedules: {picture}\n\nNext:")
    for line in (
        f"inspect {cache} --row 0",
        f"generate {distilled.directory} --prompt 'Return the number of'",
        "cache-teacher --recipe distil-xlstm --out fineweb-cache  # on a GPU",
    ):
        click.echo(f"  {_program()} {line}")


def _program() -> str:
    """How this program can be typed here: by name, or by its path where no PATH leads to it."""
    return "pipeline" if shutil.which("pipeline") else os.path.relpath(sys.argv[0])


def _row(name: str, metrics: dict[str, float]) -> tuple[str, float, float, float]:
    return (
        name,
        metrics["validation/loss"],
        metrics["validation/kl"],
        metrics["validation/agreement"],
    )
