"""Two experts of one origin and their merge, on the demo's teacher.

The demo's documents are of two domains: docstrings of modules, and pages of documentation. Each is
cached by the demo's recipe; students are half as deep as the demo's, and read half as many rows a
step. One student learns from both; two experts begin with its weights and learn from one each;
their weights are averaged. A generalist goes on from both for as many steps as one expert. Each is
scored on validation rows of both caches: loss in nats per token.
"""

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from benchmarks.quick import quick_option, show
from benchmarks.typed_commands import require_same_options, type_command
from pipeline.demo.corpus import documents
from pipeline.demo.run import TEACHER

_CHARS_PER_TOKEN = 8  # more than the demo's tokenizer needs, so that corpora do not end early
DOMAINS = ("modules", "pages")
_SMALL = (
    *("train_student.student.num_blocks=2", "train_student.student.slstm_at=[0]"),
    *("train_student.batch_size=8", "train_student.validation_rows=16"),
)


@click.command("experts", help=__doc__)
@quick_option(tokens=80_000, steps=6, expert_steps=3, rows=8)
@click.option("--tokens", default=200_000, show_default=True, help="Of each cache.")
@click.option("--steps", default=120, show_default=True, help="Of the student they begin with.")
@click.option("--expert-steps", default=60, show_default=True, help="Of each expert.")
@click.option(
    "--learning-rate", default=1e-3, show_default=True, help="Peak, of experts and generalist."
)
@click.option("--rows", default=64, show_default=True, help="Of each cache, to score students on.")
@click.option("--set", "settings", multiple=True, help="As train-student takes it, for all.")
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keeps corpora, caches and students; what is there is taken, and is of the same options.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def experts(
    tokens: int,
    steps: int,
    expert_steps: int,
    learning_rate: float,
    rows: int,
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
                "settings": list(settings),
            },
        )
        for domain in DOMAINS:
            make_cache(work, domain, tokens)
        own = [f"train_student.learning_rate={learning_rate}", *settings]
        train(work, "base", DOMAINS, steps, settings)
        train(work, "generalist", DOMAINS, expert_steps, own, init="base")
        for domain in DOMAINS:
            train(work, domain, (domain,), expert_steps, own, init="base")
        merge(work)
        figures = {
            student: losses_of(work, student, rows)
            for student in ("base", *DOMAINS, "merged", "generalist")
        }
    show(figures, as_json, _table)


def make_cache(work: Path, domain: str, tokens: int) -> None:
    """The documents of ``domain`` and their cache, unless they are there."""
    corpus = work / f"{domain}.jsonl"
    if not corpus.exists():
        num_chars = 0
        own = (text for name, text in documents("demo") if domain_of(name) == domain)
        with corpus.open("w", encoding="utf-8") as sink:
            while num_chars < _CHARS_PER_TOKEN * tokens and (text := next(own, None)):
                sink.write(json.dumps({"text": text}) + "\n")
                num_chars += len(text)
    type_command(
        *("cache-teacher", "--recipe", "demo", "--out", work / f"{domain}-cache"),
        *("--set", f"cache_teacher.teacher={json.dumps(str(TEACHER))}"),
        *("--set", f"cache_teacher.corpus={json.dumps(str(corpus.resolve()))}"),
        *("--tokens", tokens),
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


def merge(work: Path) -> None:
    """The mean of the two experts' weights."""
    if not (work / "merged").exists():
        shares = [f"{work / domain}={1 / len(DOMAINS)}" for domain in DOMAINS]
        type_command("merge-students", *shares, "--out", work / "merged")


def losses_of(work: Path, student: str, rows: int) -> dict[str, float]:
    """Of ``student`` on so many validation rows of each domain."""
    caches = [word for domain in DOMAINS for word in ("--cache", work / f"{domain}-cache")]
    command = ("evaluate", work / student, *caches, "--rows", rows, "--json")
    found = json.loads(type_command(*command))
    losses = (of_cache["student"]["loss"] for of_cache in found["caches"])
    return dict(zip(DOMAINS, losses, strict=True))


def _table(figures: dict[str, dict[str, float]]) -> str:
    lines = [f"{'':20}{''.join(f'{domain:>10}' for domain in DOMAINS)}{'mean':>10}"]
    for student, losses in figures.items():
        name = f"expert: {student}" if student in DOMAINS else student
        values = [*losses.values(), sum(losses.values()) / len(losses)]
        lines.append(f"{name:20}{''.join(f'{value:>10.4f}' for value in values)}")
    return "\n".join(lines)
