"""Is a head of fewer columns good enough? What ``train_student.sampled_softmax_size`` wins, and
loses.

Instead of all V columns a chunk reads those that its labels and kept ids name and ``drawn`` others.
Loss, gradient and draw are this project's own.

Teacher: the demo's, over the demo's documents. Student: its hidden states with noise, times a
matrix, through the same head. With ``--logits``, once more at the size of Qwen's vocabulary.
``gradient`` is that by the hidden states, at one position; ``matrix`` that by the matrix, summed
over a chunk, whose positions share their draws. Bias, and noise over draws, are over the norm of
the exact gradient. ``loss_bias_nats`` is for a position. ``held_out_kl`` is the full KL after
equally many steps of AdamW on the matrix. Times are of random numbers at the size of Qwen's head;
choosing and gathering columns included.
"""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from benchmarks.positions import QWEN_VOCABULARY
from benchmarks.progress import Done, Progress, quiet
from benchmarks.quick import quick_option, show
from benchmarks.sampled_softmax_scenes import TEMPERATURE, TOP_K, Scene, demo_scene, full_scenes
from stages.compute.compiling import Mode
from stages.train_student.data.targets.sparse_targets import SparseTargets
from stages.train_student.losses.sampled_softmax import SampledColumns
from stages.train_student.losses.sparse_kl import SparseDistillationLoss
from stages.train_student.losses.vocabulary_pass import VocabularyWeights

WEIGHTING = VocabularyWeights(cross_entropy=0.3, kl=0.7 * TEMPERATURE**2, temperature=TEMPERATURE)
NUM_DRAWN = (64, 256, 1024)
NUM_DRAWN_AT_QWEN = (1024, 4096, 16_384)
NUM_NAMED_AT_QWEN = (
    3146  # distinct ids among 256 positions' 64 largest, by an n-gram model's logits
)
_LEARNING_RATE = 1e-3


@click.command("sampled-softmax", help=__doc__)
@quick_option(repeats=8, steps=20, width=128, compile="off")
@click.option("--repeats", type=int, default=64, show_default=True, help="Draws of columns.")
@click.option("--chunk", type=int, default=64, show_default=True, help="Positions of one draw.")
@click.option("--steps", type=int, default=300, show_default=True, help="Of the training; 0: none.")
@click.option(
    "--width", type=int, default=512, show_default=True, help="Of the head that is timed."
)
@click.option(
    "--compile",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="What is timed.",
)
@click.option(
    "--logits", type=click.Path(exists=True, path_type=Path), help="A logits file; see `positions`."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def sampled_softmax(
    repeats: int,
    chunk: int,
    steps: int,
    width: int,
    compile: Mode,
    as_json: bool,
    logits: Path | None,
) -> None:
    if repeats < 2:
        raise click.UsageError("--repeats: at least 2 are needed for a deviation")
    at_qwen = (QWEN_VOCABULARY, width, NUM_NAMED_AT_QWEN, NUM_DRAWN_AT_QWEN)
    trained = (None, *NUM_DRAWN) if steps else ()
    # Errors of each number of draws, in one scene or three; its training; its times.
    num_errors = len(NUM_DRAWN) + 2 * len(NUM_DRAWN_AT_QWEN) * (logits is not None)
    num_parts = num_errors + len(trained) + 1 + len(NUM_DRAWN_AT_QWEN)
    with Progress("sampled-softmax", num_parts, unit=" parts") as progress:
        progress.say("making positions")
        scene = demo_scene()
        progress.start()
        scenes = {"demo": (scene.part(slice(0, chunk)), NUM_DRAWN)}
        if logits is not None:
            for name, one in full_scenes(logits, chunk, width).items():
                scenes[name] = (one, NUM_DRAWN_AT_QWEN)
        errors = {
            name: list(errors_of(one, drawn, repeats, progress.done))
            for name, (one, drawn) in scenes.items()
        }
        held_out = {}
        for m in trained:
            key = "all" if m is None else str(m)
            held_out[key] = round(held_out_kl(scene, m, chunk, steps), 4)
            progress.done(f"training with {key} columns")
        times = list(times_at(*at_qwen, compile=compile))
        progress.done("times", 1 + len(times))
    show({"errors": errors, "held_out_kl": held_out, "times": times}, as_json, _table)


def _table(figures: dict[str, Any]) -> str:
    tables = {
        **figures["errors"],
        "held-out KL": [figures["held_out_kl"]],
        "times": figures["times"],
    }
    lines = []
    for title, rows in tables.items():
        lines.append(title)
        lines += [
            "  " + "  ".join(f"{name} {value}" for name, value in row.items()) for row in rows
        ]
    return "\n".join(lines)


def loss_of(
    ranks_V: Tensor, num_drawn: int | None, chunk: int, compile: Mode = "off"
) -> SparseDistillationLoss:
    """Stage two's loss on ``num_drawn`` columns beside the named ones, or on all."""
    return SparseDistillationLoss(
        chunk=chunk,
        dtype=torch.float32,
        compile=compile,
        device=torch.device("cpu"),
        columns=None if num_drawn is None else SampledColumns(ranks_V, num_drawn),
    )


def errors_of(
    scene: Scene, drawn: tuple[int, ...], repeats: int, done: Done = quiet
) -> Iterator[dict[str, Any]]:
    """Bias and noise of each number of draws, for the positions of one chunk."""
    (num_positions, width), ranks_V = scene.input_PD.shape, scene.ranks_V()
    targets, input_DP = scene.targets(), scene.input_PD.T
    hidden_PE, head_VE = scene.student()

    def take(num_drawn: int | None) -> tuple[float, Tensor]:
        leaf_PE = hidden_PE.clone().requires_grad_()
        loss = loss_of(ranks_V, num_drawn, num_positions)
        sums = loss(leaf_PE, head_VE, scene.labels_P, targets, WEIGHTING)
        (by_hidden_PE,) = torch.autograd.grad(sums.weighted, leaf_PE)
        value = WEIGHTING.cross_entropy * sums.cross_entropy + WEIGHTING.kl * sums.kl
        return value.item() / num_positions, by_hidden_PE[:, :width]

    exact, exact_PD = take(None)
    for num_drawn in drawn:
        torch.manual_seed(num_drawn)
        values, gradients = zip(*(take(num_drawn) for _ in range(repeats)), strict=True)
        gradients_RPD = torch.stack(gradients)
        bias, noise = _bias_and_noise(gradients_RPD, exact_PD)
        of_matrix = _bias_and_noise(input_DP @ gradients_RPD, input_DP @ exact_PD)
        yield {
            "drawn": num_drawn,
            "loss_bias_nats": round(statistics.mean(values) - exact, 5),
            "gradient_bias": round(bias, 4),
            "gradient_noise": round(noise, 4),
            "matrix_bias": round(of_matrix[0], 4),
            "matrix_noise": round(of_matrix[1], 4),
        }
        done(f"errors with {num_drawn} drawn")


def _bias_and_noise(estimates: Tensor, exact: Tensor) -> tuple[float, float]:
    """Over the norm of ``exact``; what draws alone would add to the bias is subtracted."""
    variance = float(estimates.var(0).sum())
    squared = float((estimates.mean(0) - exact).square().sum()) - variance / len(estimates)
    norm = float(exact.norm())
    return max(squared, 0.0) ** 0.5 / norm, variance**0.5 / norm


def held_out_kl(scene: Scene, num_drawn: int | None, chunk: int, steps: int) -> float:
    """Full KL at T = 1 on the last eighth, after training on chunks of the others."""
    num_trained, loss = len(scene.labels_P) * 7 // 8, loss_of(scene.ranks_V(), num_drawn, chunk)
    torch.manual_seed(0)
    matrix_DD = torch.eye(scene.input_PD.shape[1]).requires_grad_()
    optimizer = torch.optim.AdamW([matrix_DD], lr=_LEARNING_RATE)
    for step in range(steps):
        start = step * chunk % (num_trained - chunk + 1)
        part = scene.part(slice(start, start + chunk))
        optimizer.zero_grad()
        hidden_PD = part.input_PD @ matrix_DD
        sums = loss(hidden_PD, part.head_VD, part.labels_P, part.targets(), WEIGHTING)
        (sums.weighted / chunk).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    rest = scene.part(slice(num_trained, None))
    logits_PV = (rest.input_PD @ matrix_DD.detach()) @ rest.head_VD.T
    return float(
        torch.nn.functional.kl_div(
            logits_PV.log_softmax(1),
            rest.teacher_PV.log_softmax(1),
            reduction="batchmean",
            log_target=True,
        )
    )


def times_at(
    vocabulary: int,
    width: int,
    num_named: int,
    drawn: tuple[int, ...],
    *,
    chunk: int = 256,
    repeats: int = 5,
    compile: Mode = "auto",
) -> Iterator[dict[str, Any]]:
    """Seconds of a chunk's forward and backward, over those with all columns."""
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(chunk, width, generator=generator).requires_grad_()
    head_VD = torch.randn(vocabulary, width, generator=generator) / width**0.5
    ids_U = torch.randperm(vocabulary, generator=generator)[:num_named]
    kept_NK = ids_U[torch.rand(chunk, num_named, generator=generator).topk(TOP_K, 1).indices]
    labels_N = kept_NK[:, 1].clone()
    gaps_NK = torch.rand(chunk, TOP_K, generator=generator).cumsum(1)
    tail_NM = torch.full((chunk, 1), -1.0)
    targets = SparseTargets(kept_NK, gaps_NK, tail_NM, (1 / TEMPERATURE,))
    ranks_V = torch.arange(vocabulary)
    losses = {m: loss_of(ranks_V, m, chunk, compile) for m in (None, *drawn)}
    seconds: dict[int | None, list[float]] = {m: [] for m in (None, *drawn)}
    for _ in range(repeats + 1):
        for m, found in seconds.items():
            begin = time.perf_counter()
            sums = losses[m](hidden_ND, head_VD, labels_N, targets, WEIGHTING)
            torch.autograd.grad(sums.weighted, hidden_ND)
            found.append(time.perf_counter() - begin)
    medians = {m: statistics.median(found[1:]) for m, found in seconds.items()}
    for m in drawn:
        yield {
            "drawn_of_qwen": m,
            "share_of_columns": round((num_named + m) / vocabulary, 3),
            "time_ratio": round(medians[m] / medians[None], 3),
        }
