"""What each kind of target teaches, at what size: bias and noise of the gradient.

Teacher: the demo's, over the demo's documents. Student: the teacher's last hidden states with
Gaussian noise, through the same head, as every student's are. Compared is the gradient of
KL(p_T ‖ q_T) by the student's hidden states: the loss's own, from rows that went through a cache,
against the full distributions in float64.

Per kind, and per temperature T of the loss: bias and noise, see
pipeline/comparison/gradient_errors.py. Samples serve the temperature that they were drawn at, no
other.

`kinds` has, for every kind of target, `hidden` among them, its size and the KL of the teacher to
what the cache holds; see target_kinds.py. --teacher and --corpus choose whose, --compare which;
then it is all that is printed.
"""

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

import cache_format
from benchmarks.compare_option import compare_option, compared_settings
from benchmarks.positions import SEQUENCE_LENGTH, demo_teacher, load_teacher, make_spec
from benchmarks.progress import Done, Progress, quiet
from benchmarks.quick import quick_option, show
from benchmarks.target_kinds import SETTINGS, kinds_table, measure_kinds
from cache_format.codec.row import KeptIds, Row
from cache_format.codec.row_codec import encode_row
from cache_format.codec.samples import TailSamples
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.targets import Draws, TargetSpec
from cache_format.metadata.spec_parts.targets import Kind as KindName
from cache_format.tables.shared_files import SharedFiles
from cache_format.tables.vocabulary_ranks import RankTable
from cache_format.writer import CacheWriter
from pipeline.comparison.compared import LEVELS
from pipeline.comparison.gradient_errors import GradientErrors, Student, gradient_errors
from stages.train_student.data.batch import Batch, read_batch
from stages.train_student.data.targets.ids import IdTargets, sparse_targets
from stages.train_student.data.temperatures import covers, lagrange_weights

TOP_K = (32, 64)
NUM_DRAWS = (12, 50, 64)
DRAWN_AT = (1.0, 4 / 3, 2.0)
TEMPERATURES = (1.0, 1.15, 4 / 3, 1.5, 2.0)
NUM_DOCUMENTS = 800
NODES = (0.5, 0.625, 0.75, 0.875, 1.0)
_ROWS_OF_TEACHER = 8
_STUDENT_NOISE = 0.6  # of the hidden states' deviation: a student half a nat from its teacher
_TARGET_COLUMNS = ("num_kept", "kept", "tail_log_mass", "next_logprob", "drawn")


@dataclass(frozen=True)
class Scene:
    """A teacher and a student at P = 512 positions; V ids, width D."""

    teacher_PV: torch.Tensor
    """Logits."""
    student_PD: torch.Tensor
    """Hidden states."""
    head_VD: torch.Tensor
    labels_P: torch.Tensor
    ranks: RankTable

    def kl(self, temperature: float) -> tuple[float, torch.Tensor]:
        """Mean KL of the full distributions, and the gradient of its sum by the student, [P, D]."""
        hidden_PD = self.student_PD.double().requires_grad_()
        logq_PV = (hidden_PD @ self.head_VD.double().T / temperature).log_softmax(1)
        logp_PV = (self.teacher_PV.double() / temperature).log_softmax(1)
        kl = torch.nn.functional.kl_div(logq_PV, logp_PV, reduction="sum", log_target=True)
        return kl.item() / len(hidden_PD), torch.autograd.grad(kl, hidden_PD)[0]


@dataclass(frozen=True)
class Kind:
    """One way to keep a distribution."""

    kind: KindName
    top_k: int | None
    num_draws: int | None
    drawn_at: float | None

    def spec(self, ranks: RankTable) -> CacheSpec:
        """The spec of a cache of this kind."""
        spec = make_spec(self.top_k or min(LEVELS), ranks)
        kept, draws = None, None
        if self.top_k is not None:
            kept = replace(spec.targets.logits, inverse_temperatures=NODES)
        if self.num_draws is not None:
            draws = Draws(num_draws=self.num_draws, inverse_temperature=self._node())
        return replace(spec, targets=TargetSpec(kind=self.kind, kept=kept, draws=draws))

    def _node(self) -> float:
        return next(s for s in NODES if math.isclose(s * (self.drawn_at or 1.0), 1.0))


_FILE = click.Path(exists=True, path_type=Path)


@click.command("targets", help=__doc__)
@quick_option(repeats=2, rows=4)
@click.option("--repeats", type=int, default=16, show_default=True, help="Draws of each kind.")
@click.option("--teacher", type=_FILE, help="Directory of another teacher for `kinds`.")
@click.option("--corpus", type=_FILE, help="Text for `kinds`, a file or a directory.")
@click.option(
    "--rows",
    type=int,
    default=72,
    show_default=True,
    help="Rows of 512 tokens for `kinds`; eight are measured, the others fitted to.",
)
@compare_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def targets(
    repeats: int,
    teacher: Path | None,
    corpus: Path | None,
    rows: int,
    compared: Sequence[str],
    as_json: bool,
) -> None:
    if repeats < 2:
        raise click.UsageError("--repeats: at least 2 are needed for a deviation")
    figures: dict[str, Any] = {}
    settings = compared_settings(compared) or SETTINGS
    with_gradients = teacher is None and corpus is None and not compared
    num_kinds = len(settings) + len(list(kinds())) * with_gradients
    with Progress("targets", num_kinds, unit=" kinds") as progress:
        progress.say("making positions")
        loaded = load_teacher(teacher, corpus, rows, NUM_DOCUMENTS)
        progress.start()
        if with_gradients:
            figures |= _demo_figures(repeats, progress.done)
        figures["kinds"] = list(measure_kinds(*loaded, settings, progress.done))
    show(figures, as_json, _tables)


def _tables(figures: dict[str, Any]) -> str:
    lines = [*(_table(figures) if "targets" in figures else ()), *kinds_table(figures["kinds"])]
    return "\n".join(lines)


def _demo_figures(repeats: int, done: Done) -> dict[str, Any]:
    """Bias and noise of the gradient."""
    scene = demo_scene()
    measured_rows = list(measured(scene, kinds(), repeats, done))
    return {
        "student_kl_nats": {
            f"{temperature:.3g}": round(scene.kl(temperature)[0], 4) for temperature in TEMPERATURES
        },
        "interpolation_error_nats": interpolation_errors(scene.teacher_PV),
        "targets": measured_rows,
        "excess_noise_by_draw_temperature": _excess_noise(measured_rows),
    }


def demo_scene() -> Scene:
    """Every eighth of eight rows of the demo's documents."""
    teacher, packed, ranks = demo_teacher(_ROWS_OF_TEACHER, NUM_DOCUMENTS)
    parts = []
    for row in range(_ROWS_OF_TEACHER):
        one = packed.rows(row, row + 1)
        hidden_BTD, _ = teacher.forward(one.token_ids_RT[:, :-1], one.document_starts, layers=())
        parts.append((hidden_BTD[0], torch.from_numpy(one.token_ids_RT[0, 1:].astype(np.int64))))
    hidden_PD, labels_P = (torch.cat(part)[::_ROWS_OF_TEACHER] for part in zip(*parts, strict=True))
    noise_PD = torch.randn(hidden_PD.shape, generator=torch.Generator().manual_seed(0))
    vocab_size = teacher.source.spec.vocab_size
    return Scene(
        teacher_PV=teacher.head.logits(hidden_PD).clone(),
        student_PD=hidden_PD + _STUDENT_NOISE * hidden_PD.std() * noise_PD,
        head_VD=teacher.head_weight.detach()[:vocab_size].float(),
        labels_P=labels_P,
        ranks=ranks,
    )


def kinds() -> Iterator[Kind]:
    """What is measured."""
    for top_k in TOP_K:
        yield Kind("top_k", top_k, None, None)
    for num_draws in NUM_DRAWS:
        for drawn_at in DRAWN_AT:
            yield Kind("sampled", None, num_draws, drawn_at)
    for top_k in TOP_K:
        for num_draws in NUM_DRAWS:
            for drawn_at in DRAWN_AT:
                yield Kind("top_k+sampled", top_k, num_draws, drawn_at)


def measured(
    scene: Scene, chosen: Iterator[Kind], repeats: int, done: Done = quiet
) -> Iterator[dict[str, Any]]:
    """For each kind its bytes per token, and bias and noise at every temperature it serves."""
    generator = torch.Generator().manual_seed(1)
    true = {temperature: scene.kl(temperature)[1] for temperature in TEMPERATURES}
    for kind in chosen:
        spec = kind.spec(scene.ranks)
        rows = list(_rows(scene, spec, kind, repeats, generator))
        shared = SharedFiles(ranks=scene.ranks)
        encoded = [encode_row(row, spec, shared) for row in rows]
        sizes = [len(row[name]) for row in encoded for name in _TARGET_COLUMNS if name in row]
        batch = _through_a_cache(spec, shared, rows)
        by_temperature = {}
        for temperature in TEMPERATURES:
            if not covers(spec.targets.inverse_temperatures, temperature):
                continue
            errors = _errors(scene, batch, spec, temperature, true[temperature])
            by_temperature[f"{temperature:.3g}"] = {
                "bias": round(errors.bias, 4),
                "noise": round(errors.noise, 4),
            }
        yield {
            "kind": kind.kind,
            "top_k": kind.top_k,
            "num_draws": kind.num_draws,
            "sampling_temperature": kind.drawn_at and round(kind.drawn_at, 3),
            "bytes_per_token": round(sum(sizes) / (repeats * SEQUENCE_LENGTH), 1),
            "at_temperature": by_temperature,
        }
        done(f"gradients of {kind.kind}")


def interpolation_errors(teacher_PV: torch.Tensor) -> dict[str, float]:
    """Errors of the tail's log-mass at temperatures from 1 to 2, taken from its values at nodes."""
    errors = {}
    for top_k in TOP_K:
        rest_PV = _tail_of(teacher_PV.double(), top_k)
        nodes_PM = torch.stack([(rest_PV * s).logsumexp(1) for s in NODES], 1)
        found = []
        for temperature in np.linspace(1, 2, 41).tolist():
            weights_M = nodes_PM.new_tensor(lagrange_weights(NODES, 1 / temperature))
            found.append((nodes_PM @ weights_M - (rest_PV / temperature).logsumexp(1)).abs())
        all_errors = torch.stack(found)
        errors[f"max_k{top_k}"] = float(f"{all_errors.max().item():.3g}")
        errors[f"q999_k{top_k}"] = float(f"{all_errors.quantile(0.999).item():.3g}")
    return errors


def _tail_of(logits_PV: torch.Tensor, top_k: int) -> torch.Tensor:
    """Logits relative to the largest; −inf for the ``top_k`` largest."""
    relative_PV = logits_PV - logits_PV.amax(1, keepdim=True)
    return relative_PV.scatter(1, logits_PV.topk(top_k).indices, -math.inf)


def _rows(
    scene: Scene, spec: CacheSpec, kind: Kind, repeats: int, generator: torch.Generator
) -> Iterator[Row]:
    """The scene as one row of a cache, once for every repeat."""
    logits_PV = scene.teacher_PV.double()
    relative_PV = logits_PV - logits_PV.amax(1, keepdim=True)
    label_PV = logits_PV.log_softmax(1).gather(1, scene.labels_P[:, None])
    num_positions = len(logits_PV)
    label_logprob_P = label_PV[:, 0].float().numpy()

    def row(**kept: Any) -> Row:
        return Row(
            token_ids=np.append([0], scene.labels_P.numpy()).astype(np.int32),
            document_starts=np.empty(0, np.int32),
            kept_ids=KeptIds(next_logprob=label_logprob_P, **kept),
        )

    if kind.kind == "sampled":
        for _ in range(repeats):
            num_ids, ids, counts = _drawn(relative_PV, kind, generator)
            most = np.repeat(np.maximum.reduceat(counts, np.cumsum(num_ids) - num_ids), num_ids)
            tail = np.full((num_positions, 1), -np.inf, np.float32)
            yield row(
                num_ids=num_ids.astype(np.uint16),
                ids=ids.astype(np.int32),
                gaps=np.log(most / counts).astype(np.float32),
                counts=counts.astype(np.uint16),
                tail_log_mass=tail,
            )
        return
    assert kind.top_k is not None
    values_PK, ids_PK = relative_PV.topk(kind.top_k)
    rest_PV = _tail_of(logits_PV, kind.top_k)
    tail_PM = torch.stack([(rest_PV * s).logsumexp(1) for s in spec.targets.inverse_temperatures])
    for _ in range(repeats):
        draws = None
        if kind.kind == "top_k+sampled":
            num_ids, ids, counts = _drawn(rest_PV, kind, generator)
            gaps = -relative_PV.numpy()[np.repeat(np.arange(num_positions), num_ids), ids]
            draws = TailSamples(
                num_ids=num_ids.astype(np.uint16),
                ids=ids.astype(np.int32),
                counts=counts.astype(np.uint16),
                gaps=gaps.astype(np.float32),
            )
        yield row(
            num_ids=np.full(num_positions, kind.top_k, np.uint16),
            ids=ids_PK.flatten().numpy().astype(np.int32),
            gaps=-values_PK.flatten().float().numpy(),
            tail_log_mass=tail_PM.T.float().numpy(),
            draws=draws,
        )


def _drawn(
    logits_PV: torch.Tensor, kind: Kind, generator: torch.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct ids drawn at each position, how many [P], which and how often, the most first."""
    assert kind.num_draws is not None
    assert kind.drawn_at is not None
    weights_PV = (logits_PV / kind.drawn_at).softmax(1)
    drawn_PM = torch.multinomial(weights_PV, kind.num_draws, replacement=True, generator=generator)
    once_PM = torch.ones_like(drawn_PM, dtype=logits_PV.dtype)
    counts_PV = torch.zeros_like(logits_PV).scatter_add_(1, drawn_PM, once_PM)
    counts_PM, ids_PM = counts_PV.topk(kind.num_draws)
    is_drawn_PM = counts_PM > 0
    num_ids: np.ndarray = is_drawn_PM.sum(1).numpy()
    return num_ids, ids_PM[is_drawn_PM].numpy(), counts_PM[is_drawn_PM].numpy().astype(np.int64)


def _through_a_cache(spec: CacheSpec, shared: SharedFiles, rows: list[Row]) -> list[Batch]:
    """What the loader gives of each of ``rows`` once they lie in a cache."""
    with tempfile.TemporaryDirectory() as directory:
        writer = CacheWriter.create_or_open(Path(directory) / "cache", spec, shared)
        writer.write_unit(1, rows, num_documents=1)
        writer.publish_manifest(num_tokens_requested=1, complete=False)
        cache = cache_format.open(Path(directory) / "cache", allow_incomplete=True)
        return [read_batch(cache, "train", [row], with_sketch=False) for row in range(len(rows))]


def _errors(
    scene: Scene, batches: list[Batch], spec: CacheSpec, temperature: float, true_PD: torch.Tensor
) -> GradientErrors:
    """Bias and noise of the gradient, relative to ``true_PD``."""
    student = Student(scene.student_PD, scene.head_VD, scene.labels_P)
    gradients = []
    for batch in batches:
        assert isinstance(batch.targets, IdTargets)
        targets = sparse_targets(batch.targets, batch.scored, spec.targets)
        gradients.append(student.kl_gradient(targets, temperature)[1])
    return gradient_errors(gradients, true_PD)


def _excess_noise(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Noise of top_k+sampled over that of the best draw temperature: its mean and its worst.

    Over top_k, num_draws and the temperatures of the loss.
    """
    both = [row for row in rows if row["kind"] == "top_k+sampled"]
    ratios: dict[float, list[float]] = {}
    for row in both:
        rivals = [r for r in both if all(r[key] == row[key] for key in ("top_k", "num_draws"))]
        for temperature, figures in row["at_temperature"].items():
            best = min(rival["at_temperature"][temperature]["noise"] for rival in rivals)
            ratios.setdefault(row["sampling_temperature"], []).append(figures["noise"] / best)
    return {
        f"{drawn_at:.3g}": {"mean": round(float(np.mean(r)), 3), "worst": round(max(r), 3)}
        for drawn_at, r in ratios.items()
    }


def _table(figures: dict[str, Any]) -> Iterator[str]:
    columns = [f"{temperature:.3g}" for temperature in TEMPERATURES]
    yield "KL of the student, nats: " + ", ".join(
        f"{kl} at T = {temperature}" for temperature, kl in figures["student_kl_nats"].items()
    )
    yield f"interpolation of the tail's log-mass, nats: {figures['interpolation_error_nats']}"
    yield "bias / noise of the gradient at T ="
    yield f"{'kind':14}{'k':>4}{'draws':>7}{'at':>6}{'B/token':>9}" + "".join(
        f"{column:>15}" for column in columns
    )
    for row in figures["targets"]:
        cells = [
            f"{found['bias']:.3f} / {found['noise']:.3f}" if found else ""
            for found in (row["at_temperature"].get(column) for column in columns)
        ]
        yield (
            f"{row['kind']:14}{row['top_k'] or '':>4}{row['num_draws'] or '':>7}"
            f"{row['sampling_temperature'] or '':>6}{row['bytes_per_token']:>9}"
            + "".join(f"{cell:>15}" for cell in cells)
        )
    yield "noise of top_k+sampled over the best draw temperature's, by draw temperature:"
    for drawn_at, found in figures["excess_noise_by_draw_temperature"].items():
        yield f"  {drawn_at:6} mean {found['mean']}, worst {found['worst']}"
