"""Is a head of fewer columns good enough? What is won, what is lost.

Instead of all V columns a chunk reads those that its labels and kept ids name and m others, drawn
with replacement: a fifth uniformly, the rest by Zipf's law over the ids' ranks. A draw stands for
1/(m·π) columns in both normalisers (importance sampling), so these are unbiased; their logarithms
and ratios, which is what loss and gradient are made of, are not.

Teacher: the demo's, over the demo's documents. Student: its hidden states with noise, times a
matrix, through the same head. With ``--logits``, once more at the size of Qwen's vocabulary.
``gradient`` is that by the hidden states, at one position; ``matrix`` that by the matrix, summed
over a chunk, whose positions share their draws. Bias, and noise over draws, are over the norm of
the exact gradient. ``loss_bias_nats`` is for a position. ``held_out_kl`` is the full KL after
equally many steps of AdamW on the matrix. Times are of this project's loss on so many columns of
random numbers at the size of Qwen's head; choosing and gathering them included.
"""

import json
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from benchmarks.head_scenes import TEMPERATURE, TOP_K, Kept, Scene, demo_scene, full_scene
from benchmarks.positions import QWEN_VOCABULARY
from stages.train_student.objective.loss import SparseDistillationLoss
from stages.train_student.objective.sparse_targets import SparseTargets

WEIGHTING = (0.3, 0.7)  # of cross-entropy and of KL
NUM_DRAWN = (64, 256, 1024)
NUM_DRAWN_AT_QWEN = (1024, 4096, 16_384)
NUM_NAMED_AT_QWEN = (
    3146  # distinct ids among 256 positions' 64 largest, by an n-gram model's logits
)
_LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Columns:
    """C columns of a head, and for how many each stands, as a logarithm."""

    ids_C: Tensor
    log_weight_C: Tensor


@click.command("head-columns", help=__doc__)
@click.option("--repeats", type=int, default=64, show_default=True, help="Draws of columns.")
@click.option("--chunk", type=int, default=64, show_default=True, help="Positions of one draw.")
@click.option("--steps", type=int, default=300, show_default=True, help="Of the training; 0: none.")
@click.option(
    "--width", type=int, default=512, show_default=True, help="Of the head that is timed."
)
@click.option(
    "--logits", type=click.Path(exists=True, path_type=Path), help="A logits file; see `positions`."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def head_columns(
    repeats: int, chunk: int, steps: int, width: int, as_json: bool, logits: Path | None
) -> None:
    if repeats < 2:
        raise click.UsageError("--repeats: at least 2 are needed for a deviation")
    scene = demo_scene()
    first = scene.part(slice(0, chunk))
    student_PV = first.input_PD @ first.head_VD.T
    errors = {"demo": list(errors_of(first, student_PV, NUM_DRAWN, repeats))}
    if logits is not None:
        first, students = full_scene(logits, chunk, width)
        for name, student_PV in students.items():
            errors[name] = list(errors_of(first, student_PV, NUM_DRAWN_AT_QWEN, repeats))
    held_out = {
        "all" if m is None else str(m): round(held_out_kl(scene, m, chunk, steps), 4)
        for m in ((None, *NUM_DRAWN) if steps else ())
    }
    times = list(times_at(QWEN_VOCABULARY, width, NUM_NAMED_AT_QWEN, NUM_DRAWN_AT_QWEN))
    figures = {"errors": errors, "held_out_kl": held_out, "times": times}
    if as_json:
        click.echo(json.dumps(figures))
        return
    for title, rows in {**errors, "held-out KL": [held_out], "times": times}.items():
        click.echo(title)
        for row in rows:
            click.echo("  " + "  ".join(f"{name} {value}" for name, value in row.items()))


def all_columns(num_ids: int) -> Columns:
    """The whole head."""
    return Columns(torch.arange(num_ids), torch.zeros(num_ids))


def drawn_columns(
    kept: Kept, mixture_V: Tensor, num_drawn: int, generator: torch.Generator
) -> Columns:
    """What is named, and ``num_drawn`` of the others."""
    named_U = kept.named_U()
    others_V = mixture_V.index_fill(0, named_U, 0.0)
    sums_V = others_V.double().cumsum(0)
    uniform_M = torch.rand(num_drawn, dtype=torch.float64, generator=generator) * sums_V[-1]
    drawn_M = torch.searchsorted(sums_V, uniform_M, right=True)
    drawn_S, counts_S = drawn_M.unique(return_counts=True)  # type: ignore[no-untyped-call]
    weight_S = counts_S * sums_V[-1] / (num_drawn * others_V[drawn_S])
    log_weight_C = torch.cat((torch.zeros(len(named_U)), weight_S.log().float()))
    return Columns(torch.cat((named_U, drawn_S)), log_weight_C)


def loss_of(logits_PC: Tensor, kept: Kept, columns: Columns, num_ids: int) -> Tensor:
    """c_ce·CE + c_kl·T²·KL over K+1 outcomes, mean over positions, from some columns' logits."""
    log_weight_C = columns.log_weight_C.to(logits_PC)
    place_V = torch.empty(num_ids, dtype=torch.int64)
    place_V[columns.ids_C] = torch.arange(len(columns.ids_C))
    label_P = logits_PC.gather(1, place_V[kept.labels_P][:, None])[:, 0]
    cross_entropy = ((logits_PC + log_weight_C).logsumexp(1) - label_P).mean()
    scores_PC = logits_PC / TEMPERATURE + log_weight_C
    log_z_P = scores_PC.logsumexp(1)
    logq_PK = scores_PC.gather(1, place_V[kept.ids_PK]) - log_z_P[:, None]
    tail_PC = scores_PC.scatter(1, place_V[kept.ids_PK], -math.inf)
    log_q_tail_P = tail_PC.logsumexp(1) - log_z_P
    kl_P = (kept.logp_PK.exp() * (kept.logp_PK - logq_PK)).sum(1)
    kl_P = kl_P + kept.log_p_tail_P.exp() * (kept.log_p_tail_P - log_q_tail_P)
    return WEIGHTING[0] * cross_entropy + WEIGHTING[1] * TEMPERATURE**2 * kl_P.mean()


def errors_of(
    scene: Scene, logits_PV: Tensor, drawn: tuple[int, ...], repeats: int
) -> Iterator[dict[str, Any]]:
    """Bias and noise of each number of draws, for the positions of one chunk."""
    kept, mixture_V, num_ids = scene.kept(), scene.mixture_V(), len(scene.head_VD)
    input_DP = scene.input_PD.T

    def take(columns: Columns) -> tuple[float, Tensor]:
        leaf_PC = logits_PV[:, columns.ids_C].double().requires_grad_()
        value = loss_of(leaf_PC, kept, columns, num_ids)
        (by_logits_PC,) = torch.autograd.grad(value, leaf_PC)
        return value.item(), by_logits_PC.float() @ scene.head_VD[columns.ids_C]

    exact, exact_PD = take(all_columns(num_ids))
    for num_drawn in drawn:
        generator = torch.Generator().manual_seed(num_drawn)
        values, gradients, num_columns = [], [], []
        for _ in range(repeats):
            columns = drawn_columns(kept, mixture_V, num_drawn, generator)
            value, gradient_PD = take(columns)
            values.append(value - exact)
            gradients.append(gradient_PD)
            num_columns.append(len(columns.ids_C))
        gradients_RPD = torch.stack(gradients)
        bias, noise = _bias_and_noise(gradients_RPD, exact_PD)
        of_matrix = _bias_and_noise(input_DP @ gradients_RPD, input_DP @ exact_PD)
        yield {
            "drawn": num_drawn,
            "share_of_columns": round(statistics.mean(num_columns) / num_ids, 4),
            "loss_bias_nats": round(statistics.mean(values), 5),
            "gradient_bias": round(bias, 4),
            "gradient_noise": round(noise, 4),
            "matrix_bias": round(of_matrix[0], 4),
            "matrix_noise": round(of_matrix[1], 4),
        }


def _bias_and_noise(estimates: Tensor, exact: Tensor) -> tuple[float, float]:
    """Over the norm of ``exact``; what draws alone would add to the bias is subtracted."""
    variance = float(estimates.var(0).sum())
    squared = float((estimates.mean(0) - exact).square().sum()) - variance / len(estimates)
    norm = float(exact.norm())
    return max(squared, 0.0) ** 0.5 / norm, variance**0.5 / norm


def held_out_kl(scene: Scene, num_drawn: int | None, chunk: int, steps: int) -> float:
    """Full KL at T = 1 on the last eighth, after training on chunks of the others."""
    num_trained, num_ids = len(scene.labels_P) * 7 // 8, len(scene.head_VD)
    generator = torch.Generator().manual_seed(0)
    mixture_V = scene.mixture_V()
    matrix_DD = torch.eye(scene.input_PD.shape[1]).requires_grad_()
    optimizer = torch.optim.AdamW([matrix_DD], lr=_LEARNING_RATE)
    for step in range(steps):
        start = step * chunk % (num_trained - chunk + 1)
        part = scene.part(slice(start, start + chunk))
        kept, columns = part.kept(), all_columns(num_ids)
        if num_drawn is not None:
            columns = drawn_columns(kept, mixture_V, num_drawn, generator)
        optimizer.zero_grad()
        logits_PC = (part.input_PD @ matrix_DD) @ part.head_VD[columns.ids_C].T
        value = loss_of(logits_PC, kept, columns, num_ids)
        value.backward()  # type: ignore[no-untyped-call]
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
) -> Iterator[dict[str, Any]]:
    """Seconds of a chunk's forward and backward, over those with all columns."""
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(chunk, width, generator=generator).requires_grad_()
    head_VD = torch.randn(vocabulary, width, generator=generator) / width**0.5
    ids_U = torch.randperm(vocabulary, generator=generator)[:num_named]
    kept_NK = ids_U[torch.rand(chunk, num_named, generator=generator).topk(TOP_K, 1).indices]
    labels_N = kept_NK[:, 1].clone()
    mass_V = torch.rand(vocabulary, generator=generator).cumsum(0)
    gaps_NK = torch.rand(chunk, TOP_K, generator=generator).cumsum(1)
    tail_NM = torch.full((chunk, 1), -1.0)
    loss = SparseDistillationLoss(
        chunk=chunk, dtype=torch.float32, compile="auto", device=torch.device("cpu")
    )

    def run(num_drawn: int | None) -> None:
        head_CD, kept, labels = head_VD, kept_NK, labels_N
        if num_drawn is not None:
            drawn_M = torch.searchsorted(mass_V, torch.rand(num_drawn) * mass_V[-1])
            drawn_M = drawn_M.clamp_max(vocabulary - 1)
            ids_C = torch.cat((kept_NK.flatten(), labels_N, drawn_M)).unique()  # type: ignore[no-untyped-call]
            head_CD = head_VD[ids_C]
            kept, labels = (torch.searchsorted(ids_C, ids) for ids in (kept_NK, labels_N))
        targets = SparseTargets(kept, gaps_NK, tail_NM, (1 / TEMPERATURE,))
        sums = loss(hidden_ND, head_CD, labels, targets, (*WEIGHTING, TEMPERATURE))
        torch.autograd.grad(sums.weighted, hidden_ND)

    seconds: dict[int | None, list[float]] = {m: [] for m in (None, *drawn)}
    for _ in range(repeats + 1):
        for m, found in seconds.items():
            begin = time.perf_counter()
            run(m)
            found.append(time.perf_counter() - begin)
    medians = {m: statistics.median(found[1:]) for m, found in seconds.items()}
    for m in drawn:
        yield {
            "drawn_of_qwen": m,
            "share_of_columns": round((num_named + m) / vocabulary, 3),
            "time_ratio": round(medians[m] / medians[None], 3),
        }
