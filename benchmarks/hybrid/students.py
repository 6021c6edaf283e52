"""What a hybrid student keeps of its teacher: with an mLSTM, sinks, a window, or without one.

The teacher is cached once. For each mixer and seed a student is converted from it, aligned, and
distilled from there; a window without an mLSTM has nothing to align. Loss, and KL to the teacher at
temperature 1, are those of the trainings' own validations, in nats: before the first step, after
the alignment, after the distillation. ± is the standard deviation over seeds, and differences are
to the whole mixer in the same seed. The default teacher and text are the demo's. With --work, what
is there from the same options is taken, so that it may be stopped.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from benchmarks.demo_text import make_demo_text
from benchmarks.hybrid.student_results import results
from benchmarks.progress import Progress
from benchmarks.quick import quick_option, show
from benchmarks.result_files import block
from benchmarks.typed_commands import compile_option, require_same_options, type_command
from pipeline.demo.run import TEACHER
from pipeline.run_report.recorded.recorded_run import RecordedRun, read_run

MIXERS: Mapping[str, Sequence[str]] = {
    "mLSTM, window and sinks": (),
    "window and sinks": ("pattern=window",),
    "mLSTM and window": ("num_sinks=0",),
    "mLSTM": ("pattern=mlstm",),
}
"""Settings of the student, in place of the recipes'; the first is the whole mixer."""


@click.command("hybrid-students", help=__doc__)
@quick_option(tokens=50_000, align_steps=2, distill_steps=2, rows=4, seeds=1, compile="off")
@click.option(
    "--teacher",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="A model directory of a family that converts.",
)
@click.option("--corpus", type=click.Path(exists=True, path_type=Path), help="Its text.")
@click.option("--tokens", default=500_000, show_default=True, help="Of the cache.")
@click.option("--length", default=256, show_default=True, help="Of a row, in positions.")
@click.option("--window", default=32, show_default=True, help="Of attention, in positions.")
@click.option("--align-steps", default=80, show_default=True, help="Of 8 rows.")
@click.option("--distill-steps", default=80, show_default=True, help="Of 8 rows.")
@click.option(
    "--learning-rate", default=1e-4, show_default=True, help="Of the distillation, constant."
)
@click.option("--rows", default=96, show_default=True, help="Of a validation.")
@compile_option
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), help="Keeps everything.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object, in the form of a results file."
)
def hybrid_students(
    teacher: Path | None,
    corpus: Path | None,
    tokens: int,
    seeds: int,
    work: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    with ExitStack() as stack:
        if work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kept = {"teacher": str(teacher), "corpus": str(corpus), "tokens": tokens, **options}
        require_same_options(work, kept)
        trainings = _Trainings(work, options)
        num_trainings = seeds * sum(1 + _has_mlstm(mixer) for mixer in MIXERS)
        progress = stack.enter_context(
            Progress("hybrid-students", num_trainings, unit=" trainings")
        )
        trainings.make_cache(teacher or TEACHER, corpus, tokens)
        progress.start()
        found: dict[str, list[dict[str, RecordedRun]]] = {name: [] for name in MIXERS}
        for seed in range(seeds):  # so that all have one before any has two
            for mixer in MIXERS:
                runs = trainings.student(mixer, seed)
                found[mixer].append(runs)
                progress.done(f"{mixer}, seed {seed}", len(runs))
    result = results(found)
    show(result, as_json, lambda _: block(result))


def _has_mlstm(mixer: str) -> bool:
    """Without one, there is nothing to align."""
    return "pattern=window" not in MIXERS[mixer]


class _Trainings:
    """Students of equal options, and their cache."""

    def __init__(self, work: Path, options: Mapping[str, Any]) -> None:
        self._work, self._options = work, options

    def make_cache(self, teacher: Path, corpus: Path | None, tokens: int) -> None:
        if corpus is None:
            corpus = self._work / "corpus"
            make_demo_text(corpus, tokens)
        places = {"teacher": teacher, "corpus": corpus}
        type_command(
            *("cache-teacher", "--recipe", "demo-hybrid-align", "--out", self._work / "cache"),
            *(
                word
                for key, place in places.items()
                for word in ("--set", f"cache_teacher.{key}={json.dumps(str(place.resolve()))}")
            ),
            *("--set", f"cache_teacher.sequence_length={self._options['length']}"),
            *("--set", f"cache_teacher.compile={self._options['compile']}", "--tokens", tokens),
        )

    def student(self, mixer: str, seed: int) -> dict[str, RecordedRun]:
        """The trainings of a student, by what they make of it."""
        name = f"{mixer.replace(', ', '-').replace(' ', '-').lower()}-{seed}"
        own = [f"student.{setting}" for setting in MIXERS[mixer]]
        own += [f"student.window={self._options['window']}", f"seed={seed}"]
        own += [f"compile={self._options['compile']}"]
        runs: dict[str, RecordedRun] = {}
        begin: list[object] = []
        if _has_mlstm(mixer):
            runs["aligned"] = self._train(f"aligned/{name}", "align", own)
            begin = ["--init", self._work / "aligned" / name]
        own += [f"learning_rate={self._options['learning_rate']}"]
        runs["distilled"] = self._train(f"distilled/{name}", "distill", own, *begin)
        return runs

    def _train(self, name: str, phase: str, own: Sequence[str], *begin: object) -> RecordedRun:
        out, steps = self._work / name, self._options[f"{phase}_steps"]
        of_both = [f"max_steps={steps}", f"eval_steps={steps}"]
        of_both += [f"validation_rows={self._options['rows']}"]
        if not (out / "model").exists():
            type_command(
                *("train-student", "--recipe", f"demo-hybrid-{phase}", *begin),
                *("--cache", self._work / "cache", "--out", out, "--resume"),
                *(w for each in (*of_both, *own) for w in ("--set", f"train_student.{each}")),
            )
        return read_run(out, name)
