"""Stage two beside a run on labels alone, beside one with the teacher in the loop, and its loader.

A teacher of random weights with the full Qwen vocabulary is cached by stage one (64 ids, five
temperatures, a sketch of 64; other targets if told so). From that cache the paper's student takes
optimizer steps: ``cache`` on KL, cross-entropy and the Frobenius term; ``labels`` on cross-entropy
alone, without the sketches being read; ``online`` like ``cache``, but with KL over the whole
vocabulary and hidden states from the teacher itself. ``loader`` reads what ``cache`` reads, and
trains nothing. All is timed from the opening of the loader to the end of the last step, by turns; a
ratio is that of neighbours, figures are medians. Memory is the peak of a process of its own.
Neither depends on what the weights are.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch

import cache_format
from benchmarks.progress import Done, Progress, caching_bar, quiet
from benchmarks.quick import quick_option, show
from benchmarks.stage_one import (
    PRESETS,
    device_name,
    save_random_teacher,
    teacher_in,
    text_in,
    write_corpus,
)
from benchmarks.trainings import WAYS, Training, Way
from cache_format.reader import Cache
from stages.compute.device import choose_device
from stages.compute.peak_flops import peak_operations
from stages.train_student.config import TrainStudentConfig
from stages.train_student.losses.objective import PRECISIONS
from stages.train_student.modeling.distil_xlstm.settings import DistilXLSTMSettings
from stages.train_student.new_student import load_student
from stages.train_student.students.registry import student_kind
from stages.train_student.students.student import Student
from stages.train_student.tracking.throughput import peak_bytes

if TYPE_CHECKING:
    from stages.cache_teacher.reporting.progress import CacheProgress

_TEACHER_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "bfloat16"}
_TOKENS_OF_A_DOCUMENT = 500  # of the corpus of stage one's benchmark, at the least
_TRAINING_UNITS = 3
_MOST_UNITS = 4 * (1 + _TRAINING_UNITS)  # of a text that is longer than is needed
_LOADER_STEPS = 8  # for each step of training: it is faster, and its start should not show


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is measured."""

    preset: str
    blocks: int
    precision: Any
    device: str
    batch_size: int
    gradient_accumulation_steps: int
    chunk: int
    sequence_length: int
    heads: int
    compile: Any
    sampled_softmax_size: int | None
    targets: Any
    tail_moment_dim: int

    def config(self) -> TrainStudentConfig:
        """The paper's student but for the number of blocks."""
        return TrainStudentConfig(
            student=DistilXLSTMSettings(
                num_blocks=self.blocks,
                slstm_at=tuple(range(0, self.blocks, 2)),
                num_heads=self.heads,
            ),
            compile=self.compile,
            precision=self.precision,
            device=self.device,
            batch_size=self.batch_size,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            loss_chunk=self.chunk,
            sampled_softmax_size=self.sampled_softmax_size,
            max_steps=1_000,
        )


@click.command("stage-two", help=__doc__)
@quick_option(
    preset="small",
    blocks=2,
    batch_size=2,
    sequence_length=256,
    compile="off",
    steps=1,
    repeats=2,
    peaks=False,
)
@click.option(
    "--teacher",
    "preset",
    type=click.Choice(sorted(PRESETS)),
    default="qwen2.5-0.5b",
    show_default=True,
    help="Dimensions of the teacher.",
)
@click.option("--blocks", type=int, default=6, show_default=True, help="Blocks of the student.")
@click.option("--heads", type=int, default=16, show_default=True)
@click.option(
    "--precision", type=click.Choice(sorted(_TEACHER_DTYPES)), default="fp32", show_default=True
)
@click.option("--device", default="auto", show_default=True)
@click.option("--batch-size", type=int, default=4, show_default=True)
@click.option("--gradient-accumulation-steps", type=int, default=1, show_default=True)
@click.option("--chunk", type=int, default=256, show_default=True, help="Positions of a chunk.")
@click.option("--sequence-length", type=int, default=512, show_default=True)
@click.option("--compile", default="auto", show_default=True)
@click.option("--sampled-softmax-size", type=int, help="Of cache and labels, as train_student's.")
@click.option("--targets", default="top_k", show_default=True, help="Of the cache.")
@click.option("--tail-moment-dim", type=int, default=0, show_default=True, help="Of the cache.")
@click.option("--steps", type=int, default=2, show_default=True, help="Of one turn.")
@click.option("--repeats", type=int, default=5, show_default=True)
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keeps teacher and cache; what is there from the same options is taken.",
)
@click.option(
    "--inputs",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A directory that `inputs` wrote: its teacher and text in place of new ones.",
)
@click.option(
    "--peaks/--no-peaks", default=True, show_default=True, help="Memory, which takes long."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--peak-of", type=click.Choice(WAYS), hidden=True)
def stage_two(
    steps: int,
    repeats: int,
    work: Path | None,
    inputs: Path | None,
    peaks: bool,
    as_json: bool,
    peak_of: Way | None,
    **options: Any,
) -> None:
    setup = Setup(**options)
    with ExitStack() as stack:
        if work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if peak_of is not None:
            click.echo(peak_of_training(work, setup, peak_of))
            return
        # Of each repeat a turn of every way and of the loader; then the peak of every way.
        num_turns = (len(WAYS) + 1) * (repeats + 1) + len(WAYS) * peaks
        progress = stack.enter_context(Progress("stage-two", num_turns))
        progress.say(f"making a teacher ({setup.preset}), text and a cache")
        make_cache(work, setup, inputs, report=stack.enter_context(caching_bar()))
        progress.start()
        figures = measure(work, setup, steps, repeats, progress.done)
        if peaks:
            figures |= measure_peaks(work, setup, progress.done)
    show(figures, as_json)


def make_cache(
    work: Path,
    setup: Setup,
    inputs: Path | None = None,
    report: "Callable[[CacheProgress], None]" = lambda _: None,
) -> None:
    """A finished cache in ``work``, with rows for two steps at least, and its teacher and text,
    unless these are in ``inputs``.

    Raises SpecMismatchError if there is one from other options.
    """
    from stages.cache_teacher.config import CacheTeacherConfig
    from stages.cache_teacher.run import cache_teacher

    teacher = teacher_in(inputs or work, setup.preset)
    if not teacher.exists():
        save_random_teacher(teacher, setup.preset)
    num_tokens = 2 * setup.batch_size * setup.gradient_accumulation_steps * setup.sequence_length
    documents_per_unit = 1 + num_tokens // _TOKENS_OF_A_DOCUMENT // _TRAINING_UNITS
    num_documents = (1 + _TRAINING_UNITS) * documents_per_unit  # the first unit is for validation
    corpus = work / f"{num_documents}-documents.parquet"
    if inputs is not None:
        corpus = text_in(inputs)
    elif not corpus.exists():
        write_corpus(corpus, num_documents)
    config = CacheTeacherConfig(
        teacher=str(teacher),
        teacher_dtype=_TEACHER_DTYPES[setup.precision],  # type: ignore[arg-type]
        corpus=str(corpus),
        device=setup.device,
        sequence_length=setup.sequence_length,
        documents_per_unit=documents_per_unit,
        compile=setup.compile,
        num_tokens=_MOST_UNITS * documents_per_unit * _TOKENS_OF_A_DOCUMENT,
        targets=setup.targets,
        tail_moment_dim=setup.tail_moment_dim,
        hidden_quantization="nearest",  # of no consequence to stage two, and the faster one
    )
    recipe = f"[cache_teacher]\nteacher = {json.dumps(config.teacher)}\n"
    cache_teacher(config, work / "cache", recipe_toml=recipe, report=report)


def measure(
    work: Path, setup: Setup, steps: int, repeats: int, done: Done = quiet
) -> dict[str, Any]:
    """All figures. The first turn of each is not counted: it compiles, and fills caches."""
    cache, config, device = opened(work, setup)
    model = load_student(config, cache).to(device)
    runs = {way: Training(way, cache, config, device, model) for way in WAYS}
    seconds: dict[str, list[float]] = {name: [] for name in (*WAYS, "loader")}
    for _ in range(repeats + 1):
        for way, run in runs.items():
            seconds[way].append(run.run(steps) / steps)
            done(way)
        read = runs["cache"].read(steps * _LOADER_STEPS)
        seconds["loader"].append(read / (steps * _LOADER_STEPS))
        done("loader")
    seconds = {name: values[1:] for name, values in seconds.items()}
    tokens = runs["cache"].tokens_per_step
    return {
        "teacher": setup.preset,
        "blocks": setup.blocks,
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "device": device_name(device),
        "precision": setup.precision,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "tokens_per_step": tokens,
        "sequence_length": setup.sequence_length,
        **{
            f"{name}_tokens_per_s": round(tokens / statistics.median(values), 1)
            for name, values in seconds.items()
        },
        "mfu": _mfu(model, setup, device, tokens / statistics.median(seconds["cache"])),
        **_ratios("ratio_to_labels_only", seconds["labels"], seconds["cache"]),
        **_ratios("speedup_over_online", seconds["online"], seconds["cache"]),
        **_ratios("loader_ratio", seconds["cache"], seconds["loader"]),
    }


def _mfu(
    model: Student, setup: Setup, device: torch.device, tokens_per_second: float
) -> float | None:
    """Operations that the student needs over those that a known GPU could do; of the whole head."""
    if device.type != "cuda" or setup.sampled_softmax_size is not None:
        return None
    dtype = str(PRECISIONS[setup.precision]).removeprefix("torch.")
    peak = peak_operations(torch.cuda.get_device_name(device), dtype)
    needed = student_kind(setup.config().student.kind).operations_per_token(model)
    return None if peak is None else round(needed * tokens_per_second / peak, 4)


def measure_peaks(work: Path, setup: Setup, done: Done = quiet) -> dict[str, Any]:
    """The most memory of each way to train, and its ratios."""
    peaks = {}
    for way in WAYS:
        peaks[way] = peak_in_new_process(work, setup, way)
        done(f"memory of {way}")
    return {
        **{f"{way}_peak_bytes": peak for way, peak in peaks.items()},
        "peak_bytes_ratio_to_online": round(peaks["cache"] / peaks["online"], 4),
        "peak_bytes_ratio_to_labels": round(peaks["cache"] / peaks["labels"], 4),
    }


def peak_in_new_process(work: Path, setup: Setup, way: Way) -> int:
    """The most memory of a process that does nothing but train."""
    arguments = [
        *("--work", str(work), "--peak-of", way, "--teacher", setup.preset),
        *("--blocks", setup.blocks, "--precision", setup.precision, "--device", setup.device),
        *("--batch-size", setup.batch_size),
        *("--gradient-accumulation-steps", setup.gradient_accumulation_steps),
        *("--chunk", setup.chunk, "--sequence-length", setup.sequence_length),
        *("--heads", setup.heads, "--compile", setup.compile),
        *("--targets", setup.targets, "--tail-moment-dim", setup.tail_moment_dim),
        *(
            ("--sampled-softmax-size", setup.sampled_softmax_size)
            if setup.sampled_softmax_size
            else ()
        ),
    ]
    command = [sys.executable, "-m", "benchmarks", "stage-two", *map(str, arguments)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def peak_of_training(work: Path, setup: Setup, way: Way) -> int:
    """The most memory that this process has had after two steps, loading included."""
    cache, config, device = opened(work, setup)
    Training(way, cache, config, device).run(2)
    return peak_bytes(device)


def opened(work: Path, setup: Setup) -> tuple[Cache, TrainStudentConfig, torch.device]:
    """The cache that ``make_cache`` made, what trains on it, and where."""
    return cache_format.open(work / "cache"), setup.config(), choose_device(setup.device)


def _ratios(name: str, above: list[float], below: list[float]) -> dict[str, float]:
    """The median of neighbours' ratios, and the least and the most."""
    ratios = sorted(one / other for one, other in zip(above, below, strict=True))
    return {
        name: round(statistics.median(ratios), 4),
        f"{name}_least": round(ratios[0], 4),
        f"{name}_most": round(ratios[-1], 4),
    }
