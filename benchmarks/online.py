"""What a student loses to the cache, and what the teacher in the loop costs: the demo, three times.

The demo's teacher is cached by the demo's recipe. Students of that recipe then take equal steps
over the same rows in the same order: from the cache, with the teacher in the loop, on labels alone.
Each is trained in a process of its own. Tokens a second are those of all optimizer steps but the
first; memory is the process's peak until training ends. Loss and KL are means over validation rows,
KL over the whole vocabulary against the teacher itself, at temperature 1.

Stage one is timed as well, its start included; the seconds of a cache that is taken from --work are
those recorded when it was made. From these and the seconds of each training (loading its models
included) follows what some numbers of runs cost, from one cache and with the teacher in the loop,
and from which on the cache pays off: for trainings of --steps, and for those that read all of the
cache's training rows once at the measured tokens per second.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click
import torch

import cache_format
from benchmarks.break_even import RunCosts, cost_table, pays_off
from benchmarks.demo_text import make_demo_text
from benchmarks.progress import Progress, caching_bar
from benchmarks.quick import after_quick, quick_option, show
from benchmarks.timed_cache import timed
from benchmarks.trainings import WAYS, Training, Way
from cache_format.metadata.manifest import Manifest
from cache_format.reader import Cache
from pipeline.demo.run import TEACHER
from pipeline.recipes.recipe import Recipe, load_recipe, parse_override
from pipeline.students.online_teacher import load_online_teacher
from stages.compute.device import choose_device
from stages.train_student.data.targets.dense_targets import DenseTargets
from stages.train_student.evaluation.validation import validation_batches
from stages.train_student.losses.vocabulary_pass import VocabularyWeights
from stages.train_student.tracking.throughput import peak_bytes

if TYPE_CHECKING:
    from stages.cache_teacher.reporting.progress import CacheProgress

QUICK_SETTINGS = (
    "cache_teacher.num_tokens=30k",
    "cache_teacher.documents_per_unit=4",
    "cache_teacher.compile=off",
    "train_student.compile=off",
    "train_student.batch_size=4",
    "train_student.validation_rows=8",
)
_LABELS = {"cache": "from the cache", "online": "teacher in the loop", "labels": "labels alone"}


@click.command("online", help=__doc__)
@quick_option(steps=6, settings=QUICK_SETTINGS)
@click.option(
    "--steps", type=click.IntRange(min=2), default=200, show_default=True, help="Of each student."
)
@click.option(
    "--set", "settings", multiple=True, callback=after_quick, help="As pipeline takes it."
)
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keeps corpus and cache; what is there from the same options is taken.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--way", type=click.Choice(WAYS), hidden=True)
def online(
    steps: int, settings: Sequence[str], work: Path | None, as_json: bool, way: Way | None
) -> None:
    with ExitStack() as stack:
        if work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        recipe = recipe_of(work, steps, settings)
        if way is not None:
            click.echo(json.dumps(train(way, work, recipe)))
            return
        progress = stack.enter_context(Progress("online", len(WAYS)))
        progress.say("making text and a cache")
        cache_seconds = make_cache(work, recipe, stack.enter_context(caching_bar()))
        cache = cache_format.open(work / "cache")
        num_tokens = cache.num_rows("train") * cache.spec.sequence_length
        progress.start()
        figures = {}
        for name in WAYS:
            figures[name] = in_new_process(name, work, steps, settings)
            progress.done(name)
    costs = None if cache_seconds is None else run_costs(figures, cache_seconds, num_tokens)
    of_kinds = {kind: found.figures() for kind, found in (costs or {}).items()}
    show(
        {**figures, "break_even": of_kinds or None},
        as_json,
        lambda _: f"{_table(figures)}\n\n{_costs_text(costs, steps)}",
    )


def run_costs(
    figures: dict[Way, dict[str, float]], cache_seconds: float, num_tokens: int
) -> dict[str, RunCosts]:
    """Costs of the trainings that were run, and of those that read the ``num_tokens`` once."""
    cached, online = figures["cache"], figures["online"]
    return {
        "measured": RunCosts(
            cache=cache_seconds, run_from_cache=cached["seconds"], run_online=online["seconds"]
        ),
        "one_pass": RunCosts(
            cache=cache_seconds,
            run_from_cache=round(num_tokens / cached["tokens_per_s"], 3),
            run_online=round(num_tokens / online["tokens_per_s"], 3),
        ),
    }


def make_cache(
    work: Path, recipe: Recipe, report: "Callable[[CacheProgress], None]" = lambda _: None
) -> float | None:
    """The demo's corpus and cache, unless they are there.

    Returns the seconds that the cache took to be made, now or before; None where not all is known.
    """
    from stages.cache_teacher.run import cache_teacher

    make_demo_text(Path(recipe.cache_teacher.corpus))
    last: list[CacheProgress] = []

    def keep(progress: "CacheProgress") -> None:
        last[:] = [progress]
        report(progress)

    def make() -> tuple[Manifest, int]:
        manifest = cache_teacher(
            recipe.cache_teacher, work / "cache", recipe_toml=recipe.to_toml(), report=keep
        )
        return manifest, last[0].tokens_cached_this_run

    return timed(work, make)


def in_new_process(way: Way, work: Path, steps: int, settings: Sequence[str]) -> dict[str, float]:
    """The figures of ``train`` in a process of its own."""
    arguments = ["--way", way, "--work", str(work), "--steps", str(steps)]
    arguments += [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "benchmarks", "online", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def train(way: Way, work: Path, recipe: Recipe) -> dict[str, float]:
    """Train a student, then compare it with text and teacher."""
    cache, config = cache_format.open(work / "cache"), recipe.train_student
    assert config.max_steps is not None
    device = choose_device(config.device)
    begin = time.perf_counter()
    training = Training(way, cache, config, device)
    training.run(1)  # compiles
    num_timed = config.max_steps - 1
    seconds = training.run(num_timed)
    whole = time.perf_counter() - begin
    return {
        "seconds": round(whole, 3),
        "tokens_per_s": round(num_timed * training.tokens_per_step / seconds, 1),
        "peak_bytes": peak_bytes(device),
        **compare(training, cache, device),
    }


@torch.no_grad()
def compare(training: Training, cache: Cache, device: torch.device) -> dict[str, float]:
    """Cross-entropy, KL to the teacher and agreement with it on validation rows."""
    teacher = load_online_teacher(cache, device, with_mean=False)
    config, objective = training.config, training.objective
    training.model.train(False)
    totals, num_scored = torch.zeros(3, dtype=torch.float64), 0
    rows = cache.num_rows("validation")
    for host in validation_batches(cache, rows, config.validation_rows, config.batch_size):
        batch = host.to(device)
        is_scored = batch.labels >= 0
        with torch.autocast(device.type, objective.dtype, enabled=objective.uses_autocast):
            hidden_BTD = training.model.hidden_states(batch.input_ids, batch.is_document_start)
        last_BTD = teacher.states(batch.input_ids, batch.is_document_start).last_BTD
        sums = objective.vocabulary.dense_loss(
            hidden_BTD[is_scored],
            objective.head_of(training.model),
            batch.labels[is_scored],
            DenseTargets(last_BTD[is_scored], teacher.head_VD),
            VocabularyWeights(cross_entropy=0.0, kl=1.0, temperature=1.0),
        )
        totals += torch.stack((sums.cross_entropy, sums.kl, sums.num_agreeing)).cpu()
        num_scored += host.num_scored
    names = ("validation_loss", "validation_kl", "validation_agreement")
    return {name: total / num_scored for name, total in zip(names, totals.tolist(), strict=True)}


def recipe_of(work: Path, steps: int, settings: Sequence[str]) -> Recipe:
    ours = {
        "cache_teacher.teacher": TEACHER,
        "cache_teacher.corpus": (work / "corpus").resolve(),
        "train_student.max_steps": steps,
    }
    texts = [*(f"{key}={value}" for key, value in ours.items()), *settings]
    return load_recipe("demo", [parse_override(text) for text in texts])


def _table(figures: dict[Way, dict[str, float]]) -> str:
    lines = [f"{'':22}{'tokens/s':>10}{'peak MiB':>10}{'loss':>9}{'KL':>9}{'agreement':>11}"]
    for way, found in figures.items():
        lines.append(
            f"{_LABELS[way]:22}{found['tokens_per_s']:>10,.0f}{found['peak_bytes'] / 2**20:>10,.0f}"
            f"{found['validation_loss']:>9.4f}{found['validation_kl']:>9.4f}"
            f"{found['validation_agreement']:>11.1%}"
        )
    return "\n".join(lines)


def _costs_text(costs: dict[str, RunCosts] | None, steps: int) -> str:
    if costs is None:
        return (
            "The seconds of the cache in --work are not all recorded, as an older version or an "
            "interrupted process made it. Take an empty --work to compare the costs."
        )
    measured, one_pass = costs["measured"], costs["one_pass"]
    return "\n".join(
        [
            f"Runs of {steps} steps; the cache took {measured.cache:,.1f} s:",
            cost_table(measured),
            f"If each run reads the cache's rows once, {pays_off(one_pass)}.",
        ]
    )
