"""What students become of each kind of target: bytes of a cache against what it teaches.

The demo's teacher is cached once for each of the compared settings. Students of the demo's recipe
take equal steps over the same rows in the same order: from each cache, with the teacher in the loop
and on labels alone, once for every seed, each in a process of its own. Loss and KL are means over
validation rows, KL over the whole vocabulary against the teacher itself, at temperature 1. `gain`
is the share of what the teacher in the loop gains over labels alone, in percent; gains and
differences are of students of one seed, and ± is the standard deviation over seeds. With --work,
what is there from the same options is taken, so that it may be stopped.
"""

import hashlib
import json
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

import cache_format
from benchmarks import online
from benchmarks.bytes_plot import save_plot
from benchmarks.bytes_result import name_of, results
from benchmarks.compare_option import compare_option, compared_texts
from benchmarks.progress import Progress, caching_bar
from benchmarks.quick import after_quick, quick_option, show
from benchmarks.result_files import block
from benchmarks.trainings import Way
from cache_format.codec.targets.kinds import kind_of
from cache_format.reader import Cache
from cache_format.shard import SKETCH_COLUMNS
from cache_format.storage.atomic import publish_bytes
from stages.compute.device import choose_device
from stages.train_student.tracking.environment import run_environment

COMPARED: tuple[Mapping[str, Any], ...] = (
    {"targets": "top_k", "top_k": 32},
    {"targets": "top_k", "top_k": 32, "tail_moment_dim": 16},
    *(
        {"targets": "hidden", "hidden_kl": kl, "hidden_quantization": quantization}
        for kl, quantization in (
            *((0.05, "rate_distortion"), (0.05, "nearest")),
            *((0.2, "rate_distortion"), (0.02, "rate_distortion")),
        )
    ),
    {"targets": "top_k+hidden", "top_k": 32, "hidden_kl": 0.2},
)
"""Settings of ``[cache_teacher]``."""


@click.command("bytes", help=__doc__)
@quick_option(
    steps=4,
    seeds=1,
    settings=online.QUICK_SETTINGS,
    compared=("targets=top_k,top_k=32",),
)
@click.option("--steps", type=click.IntRange(min=2), default=200, show_default=True)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option(
    "--set", "settings", multiple=True, callback=after_quick, help="As pipeline takes it."
)
@compare_option
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), help="Keeps all figures.")
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Write the curve as SVG or PNG."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object, in the form of a results file."
)
def bytes_against_students(
    steps: int,
    seeds: int,
    settings: Sequence[str],
    compared: Sequence[str],
    work: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    kinds = compared_texts(compared) or COMPARED
    with ExitStack() as stack:
        if work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        progress = stack.enter_context(
            Progress("bytes", seeds * (2 + len(kinds)), unit=" students")
        )
        bench = _Bench(work, steps, settings)
        progress.say(f"making {len(kinds)} caches")
        rows = [bench.row("online", kinds[0]), bench.row("labels", kinds[0])]
        rows += [bench.row("cache", kind) for kind in kinds]
        progress.start()
        for seed in range(seeds):  # so that all have one before any has two
            for row in rows:
                row["students"].append(bench.student(row["way"], row["settings"], seed))
                progress.say(_line(row))
                progress.done(f"{name_of(row)}, seed {seed}")
    if plot is not None:
        save_plot(rows, plot)
    result = results(rows, steps)
    show(result, as_json, lambda _: block(result))


class _Bench:
    """Caches and students of equal options."""

    def __init__(self, work: Path, steps: int, settings: Sequence[str]) -> None:
        self._work, self._steps = work.resolve(), steps
        self._settings = [f"cache_teacher.corpus={self._work / 'corpus'}", *settings]

    def row(self, way: Way, compared: Mapping[str, Any]) -> dict[str, Any]:
        """A row without students; makes its cache."""
        cache = self._cache(compared)
        row: dict[str, Any] = {"way": way, "settings": compared, "students": []}
        if way == "cache":
            row["bytes_per_token"] = target_bytes(cache)
            row["state_bytes_per_token"] = state_bytes(cache)
        return row

    def student(self, way: Way, compared: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """The figures of ``online.train``, and the environment that they are of."""
        settings = [*self._of(compared), f"train_student.seed={seed}"]
        key = hashlib.sha256(json.dumps([way, self._steps, settings]).encode()).hexdigest()[:16]
        kept = self._work / "students" / f"{key}.json"
        if kept.exists():
            found: dict[str, Any] = json.loads(kept.read_text())
            return found
        found = {
            **online.in_new_process(way, self._at(compared), self._steps, settings),
            "environment": run_environment(choose_device("auto"), 1),
        }
        kept.parent.mkdir(parents=True, exist_ok=True)
        publish_bytes(kept, json.dumps(found).encode())
        return found

    def _cache(self, compared: Mapping[str, Any]) -> Cache:
        work = self._at(compared)
        with caching_bar() as report:
            online.make_cache(work, online.recipe_of(work, self._steps, self._of(compared)), report)
        return cache_format.open(work / "cache")

    def _at(self, compared: Mapping[str, Any]) -> Path:
        return self._work / "-".join(str(value) for value in compared.values())

    def _of(self, compared: Mapping[str, Any]) -> list[str]:
        own = [f"cache_teacher.{key}={value}" for key, value in compared.items()]
        return [*own, *self._settings]


def target_bytes(cache: Cache) -> float:
    """Bytes of the targets' columns, per token of training rows."""
    return _column_bytes(cache, kind_of(cache.spec).COLUMNS)


def state_bytes(cache: Cache) -> float:
    """Those of projected hidden states, which a cache may lack."""
    sketch = cache.spec.sketch
    return _column_bytes(cache, SKETCH_COLUMNS) if sketch.dim else 0.0


def _column_bytes(cache: Cache, columns: Iterable[str]) -> float:
    shards = cache.shards("train")
    if not shards:
        raise click.ClickException(
            "all that is cached is validation: raise cache_teacher.num_tokens"
        )
    num_bytes = sum(shard.statistics.column_bytes[name] for shard in shards for name in columns)
    return num_bytes / sum(shard.num_tokens for shard in shards)


def _line(row: Mapping[str, Any]) -> str:
    name = name_of(row)
    num_bytes = f"{row['bytes_per_token']:.1f}" if "bytes_per_token" in row else ""
    cells = [f"{name:32}{num_bytes:>8}"]
    for figure in ("validation_loss", "validation_kl"):
        values = [student[figure] for student in row["students"]]
        spread = f" ±{statistics.stdev(values):.4f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.4f}{spread}".rjust(18))
    return "".join(cells)
