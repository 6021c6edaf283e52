"""What each kind of target keeps of a teacher's distribution, and at what size.

Rows are made by stage one, and pass through the codec; bytes are those of the targets' columns. A
kind's ``self_kl`` is KL(teacher ‖ cache) over the whole vocabulary, a mean over positions that what
was fitted has not seen: the cache's distribution is what the loss takes it to be, and the tail of
``top_k`` is spread evenly over the ids that are left out.

Of draws, ids that were not drawn have a probability of 0 in the loss, and this KL is infinite. So
one more draw is added to a position's, spread evenly over the ids that could be drawn, and their
weights in the loss are scaled to add up to 1. That is what one position tells by itself, no bias:
over many positions a loss of draws is unbiased, see ``targets.py``.

Moments of the tail are no distribution: what they give is the gradient of a student with the same
head. So there is, for every kind, ``gradient_error`` too: the error of the loss's gradient by a
student's hidden states, which are the teacher's with noise, against that of the whole distribution,
as norms over all positions. Of draws, it has the noise of one position's.

Both are None at temperatures that a cache does not hold.

N positions, V vocabulary, K kept ids, J drawn ids.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.positions import LEVELS
from benchmarks.teacher_rows import TeacherRows, cells_of, halves
from cache_format.codec.row import Row
from cache_format.codec.row_codec import decode_row
from cache_format.codec.targets.kinds import kind_of
from cache_format.metadata.spec import CacheSpec
from cache_format.tables.shared_files import SharedFiles
from cache_format.tables.vocabulary_ranks import RankTable
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.teacher.teacher import Teacher
from stages.train_student.data.targets import kinds as stage_two_kinds
from stages.train_student.data.targets.dense_targets import DenseTargets
from stages.train_student.data.targets.ids import IdTargets, kept_targets, sparse_targets
from stages.train_student.data.targets.moment_tables import tables_of
from stages.train_student.data.targets.sparse_targets import SparseTargets
from stages.train_student.data.temperatures import covers
from stages.train_student.losses.vocabulary_pass import VocabularyWeights
from stages.train_student.losses.vocabulary_terms import VocabularyTerms

SETTINGS: tuple[dict[str, Any], ...] = (
    *({"targets": "top_k", "top_k": k} for k in (32, 64, 128)),
    *({"targets": "top_k", "top_k": 32, "tail_moment_dim": d} for d in (8, 16, 64)),
    {"targets": "sampled", "num_samples": 50},
    {"targets": "top_k+sampled", "top_k": 64, "num_samples": 50},
    *({"targets": "hidden", "hidden_kl": kl} for kl in (0.2, 0.1, 0.05, 0.02)),
    {"targets": "top_k+hidden", "top_k": 32, "hidden_kl": 0.2},
)
"""Settings of ``[cache_teacher]``; the others are those that a recipe has by default."""
TEMPERATURES = {"t1": 1.0, "t1_5": 1.5, "t2": 2.0}
_POSITIONS = 512
"""That the KL is measured at."""
_CHUNK = 64

_STUDENT_NOISE = 0.6
"""Of the states' deviation."""

TargetsOf = Callable[[Tensor], SparseTargets | DenseTargets]
"""What the loss gets of some scored positions, given by number."""


def measure_kinds(
    teacher: Teacher, packed: PackedUnit, ranks: RankTable
) -> Iterator[dict[str, Any]]:
    """Settings, size and KL of each kind."""
    first_half, second_half = halves(packed)
    source = TeacherRows(teacher, first_half, ranks)
    states_ND = torch.cat(
        [
            _scored_states(teacher, second_half.rows(row, row + 1))
            for row in range(len(second_half.token_ids_RT))
        ]
    )
    for settings in SETTINGS:
        config = _config(settings)
        spec, shared = source.spec(config)
        rows = source.make(second_half, spec, shared, config)
        encoded = [cells_of(row, spec, shared) for row in rows]
        decoded = [
            decode_row(cells, row.document_starts, spec, shared)
            for cells, row in zip(encoded, rows, strict=True)
        ]
        num_bytes = sum(len(cells[name]) for cells in encoded for name in kind_of(spec).COLUMNS)
        yield {
            "kind": config.targets,
            "settings": {key: value for key, value in settings.items() if key != "targets"},
            "bytes_per_token": round(num_bytes / second_half.scored_RT().size, 1),
            **_figures(teacher, states_ND, _targets_of(teacher, decoded, spec, shared), spec),
        }


def kinds_table(kinds: list[dict[str, Any]]) -> Iterator[str]:
    """``measure_kinds`` for people."""
    yield "KL(teacher ‖ cache) over the whole vocabulary, nats, and error of the gradient, at T ="
    yield f"{'kind':14}{'settings':28}{'B/token':>9}" + "".join(
        f"{temperature:>9g}" for temperature in (*TEMPERATURES.values(),) * 2
    )
    for row in kinds:
        settings = ", ".join(f"{key}={value}" for key, value in row["settings"].items())
        found = [
            row[f"{what}_{name}"] for what in ("self_kl", "gradient_error") for name in TEMPERATURES
        ]
        yield f"{row['kind']:14}{settings:28}{row['bytes_per_token']:>9}" + "".join(
            f"{'' if figure is None else figure:>9}" for figure in found
        )


def _config(settings: Mapping[str, Any]) -> CacheTeacherConfig:
    num_levels = LEVELS.get(settings.get("top_k", 0), CacheTeacherConfig.num_levels)
    return CacheTeacherConfig(
        hidden_projection="none", num_levels=num_levels, head_chunk=256, compile="off", **settings
    )


def _scored_states(teacher: Teacher, packed: PackedUnit) -> Tensor:
    """The last hidden states of the scored positions, [N, D]."""
    hidden_BTD, _ = teacher.forward(packed.token_ids_RT[:, :-1], packed.document_starts, layers=())
    return hidden_BTD[torch.from_numpy(packed.scored_RT())]


def _figures(
    teacher: Teacher, states_ND: Tensor, targets_of: TargetsOf, spec: CacheSpec
) -> dict[str, float | None]:
    """KL and error of the gradient at each temperature, over positions spread over all."""
    num_positions = min(_POSITIONS, len(states_ND))
    chosen = torch.linspace(0, len(states_ND) - 1, num_positions).round().long()
    noise_ND = torch.randn(states_ND.shape, generator=torch.Generator().manual_seed(0))
    students_ND = states_ND + _STUDENT_NOISE * states_ND.std() * noise_ND
    head_VD = teacher.head.weight_VD.float()
    kls: dict[str, float | None] = {}
    errors: dict[str, float | None] = {}
    for name, temperature in TEMPERATURES.items():
        kls[f"self_kl_{name}"] = errors[f"gradient_error_{name}"] = None
        if not covers(spec.targets.inverse_temperatures, temperature):
            continue
        total = error = norm = 0.0
        for part in torch.split(chosen, _CHUNK):
            logits_NV, targets = teacher.head.logits(states_ND[part]).double(), targets_of(part)
            log_p_NV = (logits_NV / temperature).log_softmax(1)
            log_q_NV = _log_distribution(targets, spec, temperature)
            total += float((log_p_NV.exp() * (log_p_NV - log_q_NV)).sum())
            student_ND = students_ND[part].float()
            log_s_NV = (student_ND.double() @ head_VD.double().T / temperature).log_softmax(1)
            true_ND = (log_s_NV.exp() - log_p_NV.exp()) @ head_VD.double() / temperature
            found_ND = _gradient(student_ND, head_VD, targets, temperature)
            error += float((found_ND - true_ND).square().sum())
            norm += float(true_ND.square().sum())
        if spec.targets.moment is None:
            kls[f"self_kl_{name}"] = round(total / num_positions, 4)
        errors[f"gradient_error_{name}"] = round(math.sqrt(error / norm), 4)
    return kls | errors


def _gradient(
    student_ND: Tensor, head_VD: Tensor, targets: SparseTargets | DenseTargets, temperature: float
) -> Tensor:
    """The loss's gradient of ΣKL by a student's hidden states, float64."""
    loss = VocabularyTerms(device=head_VD.device, chunk=_CHUNK, dtype=torch.float32)
    leaf_ND = student_ND.clone().requires_grad_()
    labels_N = torch.zeros(len(leaf_ND), dtype=torch.int64)
    weights = VocabularyWeights(cross_entropy=0.0, kl=1.0, temperature=temperature)
    sums = loss.sums(leaf_ND, head_VD, labels_N, targets, weights)
    return torch.autograd.grad(sums.weighted, leaf_ND)[0].double()


def _targets_of(
    teacher: Teacher, rows: list[Row], spec: CacheSpec, shared: SharedFiles
) -> TargetsOf:
    """What the loss gets of decoded rows."""
    scored_RT = np.stack([row.scored() for row in rows])
    place_P, head_VD = torch.from_numpy(np.flatnonzero(scored_RT)), teacher.head.weight_VD.float()
    if spec.targets.hidden is None:
        targets = stage_two_kinds.kind_of(spec.targets).batch_targets(rows, spec.targets)
        assert isinstance(targets, IdTargets)
        nodes, tables = spec.targets.inverse_temperatures, None
        if shared.moment is not None:
            tables = tables_of(shared.moment, nodes, head_VD)
        return lambda part: sparse_targets(targets, place_P[part], spec.targets, tables)
    coefficients = [row.coefficients for row in rows if row.coefficients is not None]
    states = shared.hidden_transform.states(np.stack(coefficients)[scored_RT])
    states_PD = torch.from_numpy(states)
    kept = None if spec.targets.kept is None else kept_targets(rows, spec.targets.kept.top_k)

    def dense(part: Tensor) -> DenseTargets:
        sparse = None if kept is None else sparse_targets(kept, place_P[part], spec.targets)
        return DenseTargets(states_PD[part], head_VD, sparse)

    return dense


def _log_distribution(
    targets: SparseTargets | DenseTargets, spec: CacheSpec, temperature: float
) -> Tensor:
    """log q at a temperature, float64 [N, V]."""
    if isinstance(targets, DenseTargets):
        logits_NV = targets.logits(slice(0, len(targets.hidden_ND)), temperature)
        return (logits_NV.double() / temperature).log_softmax(1)
    if spec.targets.kept is None:
        return _of_draws(targets, spec, temperature)
    return _of_kept(targets, spec, temperature)


def _of_draws(targets: SparseTargets, spec: CacheSpec, temperature: float) -> Tensor:
    """Draws from all ids, and one more of all."""
    logprobs_NK, _ = targets.logprobs(temperature)
    shape = (len(logprobs_NK), spec.teacher.vocab_size)
    drawn_NV = logprobs_NK.new_zeros(shape).scatter_add_(1, targets.kept_ids_NK, logprobs_NK.exp())
    num_draws = spec.targets.sampling.num_draws
    return ((num_draws * drawn_NV + 1 / spec.teacher.vocab_size) / (num_draws + 1)).log()


def _of_kept(targets: SparseTargets, spec: CacheSpec, temperature: float) -> Tensor:
    """Kept ids, and the mass of the others: even, but for what draws tell of it."""
    logprobs_NK, tail_N = targets.logprobs(temperature)
    shape = (len(logprobs_NK), spec.teacher.vocab_size)
    is_kept_NV = torch.zeros(shape, dtype=torch.bool).scatter_(1, targets.kept_ids_NK, True)
    rest_NV = (~is_kept_NV).double()
    rest_NV /= rest_NV.sum(1, keepdim=True)
    if (samples := targets.samples) is not None:
        num_draws = spec.targets.sampling.num_draws
        shares_NJ, _ = targets.sample_shares(temperature)
        shares_NJ = shares_NJ / shares_NJ.sum(1, keepdim=True).clamp_min(1e-300)
        rest_NV.scatter_add_(1, samples.ids_NJ, num_draws * shares_NJ)
        rest_NV /= rest_NV.sum(1, keepdim=True)
    kept_NV = logprobs_NK.new_zeros(shape)
    kept_NV.scatter_add_(1, targets.kept_ids_NK, logprobs_NK.exp())
    return torch.where(is_kept_NV, kept_NV, rest_NV * tail_N.exp()[:, None]).clamp_min(1e-300).log()
