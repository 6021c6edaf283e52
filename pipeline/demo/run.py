"""The demo: one teacher cached once, students trained from that cache, and a comparison.

Nothing here computes anything: it writes the corpus, types the ordinary commands, and reads what
they left. Everything lies under one directory, and a second run reuses what it finds there.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pipeline.demo.corpus import write_parquet
from pipeline.demo.hybrid import HybridStudent, train_hybrid
from pipeline.demo.student import Command, Student, train, type_command
from pipeline.demo.table import hybrid_sentence, print_table, table_rows

TEACHER = Path(__file__).parent / "teacher"
_CORPUS_CHARS = 9_000_000
_LABELS_ALONE = (
    *("--set", "train_student.alpha_start=0.0", "--set", "train_student.alpha_end=0.0"),
    *("--set", "train_student.beta_start=0.0", "--set", "train_student.beta_end=0.0"),
)


def run_demo(out: Path, command: Command, *, seed: int = 0, with_hybrid: bool = False) -> None:
    """Run the demo into ``out``; ``command`` runs one command line of this program.

    ``with_hybrid``: a hybrid student, too, trained from the same cache.
    """
    corpus, cache = out / "corpus", out / "cache"
    seconds = {"corpus": _timed(lambda: _write_corpus(corpus))}
    seconds["cache"] = _timed(lambda: type_command(command, _cache_arguments(cache, corpus)))
    suffix = f"-seed{seed}" if seed else ""
    common = ("--recipe", "demo", "--cache", str(cache), "--set", f"train_student.seed={seed}")
    students = [
        train(command, name, out / f"{name}{suffix}", (*common, *extra))
        for name, extra in (("distilled", ()), ("labels", _LABELS_ALONE))
    ]
    seconds |= {student.name: student.seconds for student in students}
    hybrid = None
    if with_hybrid:
        directory = out / f"hybrid{suffix}"
        hybrid = train_hybrid(directory, command, cache=cache, teacher=TEACHER, seed=seed)
        seconds |= {s.name: s.seconds for s in (hybrid.aligned, hybrid.distilled)}
    _report(_Results(out, suffix, cache, students, hybrid), seconds)


def _cache_arguments(cache: Path, corpus: Path) -> Sequence[str]:
    return (
        *("cache-teacher", "--recipe", "demo", "--out", str(cache)),
        *("--set", f"cache_teacher.teacher={json.dumps(str(TEACHER))}"),
        *("--set", f"cache_teacher.corpus={json.dumps(str(corpus))}"),
    )


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


@dataclass(frozen=True)
class _Results:
    """What the demo ended with."""

    out: Path
    suffix: str
    """Of the names of all that depends on the seed."""
    cache: Path
    students: list[Student]
    hybrid: HybridStudent | None


def _report(results: _Results, seconds: dict[str, float]) -> None:
    """The table, the plot and the next commands."""
    from pipeline.demo.plot import plot

    distilled, labels = results.students
    rows = table_rows(distilled, labels, results.hybrid)
    print_table(rows)
    gain = labels.last["validation/loss"] - distilled.last["validation/loss"]
    steps = int(distilled.last["step"])
    click.echo(
        f"\nAt equal steps ({steps}) the student distilled from the cache is {gain:.4f} nats "
        f"{'below' if gain >= 0 else 'ABOVE'} the one trained on labels alone."
    )
    if results.hybrid is not None:
        import cache_format

        length = cache_format.open(results.cache).spec.sequence_length
        click.echo(hybrid_sentence(distilled, results.hybrid, length))
    manifest = json.loads((results.cache / "manifest.json").read_text())
    num_bytes = sum(shard["num_bytes"] for shard in manifest["shards"])
    num_tokens = sum(shard["num_tokens"] for shard in manifest["shards"])
    click.echo(
        f"Cache: {num_tokens:,} tokens, {num_bytes / 1e6:.1f} MB, "
        f"{num_bytes / num_tokens:.1f} bytes/token.\n"
        f"Time: {', '.join(f'{name} {spent:.0f} s' for name, spent in seconds.items())}."
    )
    picture = results.out / f"demo{results.suffix}.png"
    plot(picture, results.students, distilled.directory / "metrics.jsonl")
    (results.out / f"results{results.suffix}.json").write_text(
        json.dumps({"rows": rows, "gain_nats": gain, "seconds": seconds}, indent=1) + "\n"
    )
    click.echo(f"Curves and schedules: {picture}\n\nNext:")
    for line in (
        f"inspect {results.cache} --row 0",
        f"generate {distilled.directory} --prompt 'Return the number of'",
        "cache-teacher --recipe distil-xlstm --out fineweb-cache  # on a GPU",
    ):
        click.echo(f"  {_program()} {line}")


def _program() -> str:
    """How this program can be typed here: by name, or by its path where no PATH leads to it."""
    return "pipeline" if shutil.which("pipeline") else os.path.relpath(sys.argv[0])
