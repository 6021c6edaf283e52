"""Two experts of one origin and their merge, on the demo's teacher.

The demo's documents are of two domains: docstrings of modules, and pages of documentation. Each is
cached by the demo's recipe; students are half as deep as the demo's, and read half as many rows a
step. One student learns from both; two experts begin with its weights and learn from one each;
their weights are averaged. A generalist goes on from both for as many steps as one expert. Each is
scored on validation rows of both caches: loss in nats per token. All that is once for every seed; ±
is the standard deviation over seeds, and differences are to the merge in the same seed. With
--work, what is there from the same options is taken, so that it may be stopped.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from benchmarks.new_result import differences, environment_of, made_by, spread
from benchmarks.progress import Progress
from benchmarks.quick import quick_option, show
from benchmarks.result_files import block
from benchmarks.typed_commands import (
    compile_option,
    require_same_options,
    type_command,
    type_here,
)
from cache_format.storage.atomic import atomic_file
from pipeline.demo.corpus import documents
from pipeline.demo.run import TEACHER
from pipeline.run_report.recorded.recorded_run import read_run

_CHARS_PER_TOKEN = 8  # more than the demo's tokenizer needs, so that corpora do not end early
DOMAINS = ("modules", "pages")
STUDENTS = {
    "base": "the student they begin with",
    **{domain: f"expert: {domain}" for domain in DOMAINS},
    "merged": "merged, ½ each",
    "generalist": "generalist, from both caches",
}
"""What they are called in the table."""
_TRAINED = ("base", *DOMAINS, "generalist")
_SMALL = (
    *("train_student.student.num_blocks=2", "train_student.student.slstm_at=[0]"),
    *("train_student.batch_size=8", "train_student.validation_rows=16"),
)


@click.command("experts", help=__doc__)
@quick_option(tokens=30_000, steps=4, expert_steps=2, rows=4, seeds=1, compile="off")
@click.option("--tokens", default=200_000, show_default=True, help="Of each cache.")
@click.option("--steps", default=120, show_default=True, help="Of the student they begin with.")
@click.option("--expert-steps", default=60, show_default=True, help="Of each expert.")
@click.option(
    "--learning-rate", default=1e-3, show_default=True, help="Peak, of experts and generalist."
)
@click.option("--rows", default=64, show_default=True, help="Of each cache, to score students on.")
@compile_option
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--set", "settings", multiple=True, help="As train-student takes it, for all.")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), help="Keeps everything.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object, in the form of a results file."
)
def experts(
    tokens: int,
    steps: int,
    expert_steps: int,
    learning_rate: float,
    rows: int,
    compile: str,
    seeds: int,
    settings: Sequence[str],
    work: Path | None,
    as_json: bool,
) -> None:
    with ExitStack() as stack:
        if work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        require_same_options(
            work,
            {
                "tokens": tokens,
                "steps": steps,
                "expert_steps": expert_steps,
                "learning_rate": learning_rate,
                "compile": compile,
                "settings": list(settings),
            },
        )
        progress = stack.enter_context(Progress("experts", seeds, unit=" seeds"))
        for domain in DOMAINS:
            make_cache(work, domain, tokens, compile)
        progress.start()
        found: dict[str, list[dict[str, float]]] = {name: [] for name in STUDENTS}
        for seed in range(seeds):
            own = [f"train_student.seed={seed}", f"train_student.compile={compile}", *settings]
            make_students(work, seed, steps, expert_steps, learning_rate, own)
            for name, of_seeds in found.items():
                of_seeds.append(losses_of(work, f"{name}-{seed}", rows))
            progress.done(f"seed {seed}")
        names = [f"{name}-{seed}" for name in _TRAINED for seed in range(seeds)]
        result = results(found, [environment_of(read_run(work / name, name)) for name in names])
    show(result, as_json, lambda _: block(result))


def make_students(
    work: Path,
    seed: int,
    steps: int,
    expert_steps: int,
    learning_rate: float,
    settings: Sequence[str],
) -> None:
    """All of one seed, unless they are there."""
    own = [f"train_student.learning_rate={learning_rate}", *settings]
    base = f"base-{seed}"
    train(work, base, DOMAINS, steps, settings)
    train(work, f"generalist-{seed}", DOMAINS, expert_steps, own, init=base)
    for domain in DOMAINS:
        train(work, f"{domain}-{seed}", (domain,), expert_steps, own, init=base)
    merge(work, seed)


def make_cache(work: Path, domain: str, tokens: int, compile: str) -> None:
    """The documents of ``domain`` and their cache, unless they are there."""
    corpus = work / f"{domain}.jsonl"
    if not corpus.exists():
        num_chars = 0
        own = (text for name, text in documents("demo") if domain_of(name) == domain)
        with atomic_file(corpus) as sink:
            while num_chars < _CHARS_PER_TOKEN * tokens and (text := next(own, None)):
                sink.write(f"{json.dumps({'text': text})}\n".encode())
                num_chars += len(text)
    type_command(
        *("cache-teacher", "--recipe", "demo", "--out", work / f"{domain}-cache"),
        *("--set", f"cache_teacher.teacher={json.dumps(str(TEACHER))}"),
        *("--set", f"cache_teacher.corpus={json.dumps(str(corpus.resolve()))}"),
        *("--set", f"cache_teacher.compile={compile}", "--tokens", tokens),
    )


def domain_of(name: str) -> str:
    """The domain of the document called ``name``: that of its file."""
    return "modules" if name.partition("#")[0].endswith(".py") else "pages"


def train(
    work: Path,
    name: str,
    domains: Sequence[str],
    steps: int,
    settings: Sequence[str],
    *,
    init: str | None = None,
) -> None:
    """Train the student ``name``, from the weights of ``init`` if there is one."""
    if (work / name / "model").exists():
        return
    weight = "" if len(domains) == 1 else f"={1 / len(domains)}"
    caches = [w for domain in domains for w in ("--cache", f"{work / domain}-cache{weight}")]
    changes = [f"train_student.max_steps={steps}", f"train_student.eval_steps={steps}"]
    changes += [*_SMALL, *settings]
    type_command(
        *("train-student", "--recipe", "demo", *caches, "--out", work / name, "--resume"),
        *(word for change in changes for word in ("--set", change)),
        *(() if init is None else ("--init", work / init)),
    )


def merge(work: Path, seed: int) -> None:
    """The mean of the two experts' weights."""
    out = work / f"merged-{seed}"
    if not out.exists():
        shares = [f"{work / f'{domain}-{seed}'}={1 / len(DOMAINS)}" for domain in DOMAINS]
        type_here("merge-students", *shares, "--out", out)


def losses_of(work: Path, student: str, rows: int) -> dict[str, float]:
    """Of ``student`` on so many validation rows of each domain."""
    caches = [word for domain in DOMAINS for word in ("--cache", work / f"{domain}-cache")]
    command = ("evaluate", work / student, *caches, "--rows", rows, "--json")
    found = json.loads(type_here(*command))
    losses = (of_cache["student"]["loss"] for of_cache in found["caches"])
    return dict(zip(DOMAINS, losses, strict=True))


def results(
    found: Mapping[str, Sequence[Mapping[str, float]]], environments: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    """A file of results; ``found`` has the losses of each student, in order of seeds."""
    columns: dict[str, dict[str, str]] = {}
    for domain in DOMAINS:
        columns[domain] = {"heading": f"loss on {domain}", "format": ".4f"}
        columns[f"{domain}_difference"] = {"heading": "to merged", "format": ".4f"}
    return {
        **made_by(environments),
        "rows_are": "student",
        "columns": columns,
        "rows": [_row(name, found) for name in found],
        "students": found,
    }


def _row(name: str, found: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": STUDENTS[name]}
    for domain in DOMAINS:
        own, merged = (
            [losses[domain] for losses in students] for students in (found[name], found["merged"])
        )
        row[domain] = spread(own)
        if name != "merged":
            row[f"{domain}_difference"] = differences(own, merged)
    return row
