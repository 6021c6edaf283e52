"""Full teacher logits, and the sparse targets of each kind that a cache would hold of them.

Everything is exact: tail masses and gaps are not rounded. The samplers are PyTorch's, so that the
code under test has no part in what it is compared with.
"""

import math
from dataclasses import replace

import torch

from stages.train_student.data.targets.sparse_targets import SparseSamples, SparseTargets
from stages.train_student.data.targets.tail_moment import MomentTables, TailMoments

NODES = (0.5, 0.625, 0.75, 0.875, 1.0)


def make_problem(
    seed: int, num_positions: int, vocab: int, width: int = 16
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student hidden states, head, labels and full teacher logits (float64)."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_positions, width, generator=generator)
    head = torch.randn(vocab, width, generator=generator) * 0.7
    labels = torch.randint(vocab, (num_positions,), generator=generator)
    teacher = torch.randn(num_positions, vocab, generator=generator, dtype=torch.float64) * 2.5
    return hidden, head, labels, teacher


def sparse(teacher: torch.Tensor, num_kept: list[int], top_k: int) -> SparseTargets:
    """Exact sparse targets of full teacher logits, the n-th position keeping ``num_kept[n]``."""
    ids, gaps, tails = [], [], []
    for logits, kept in zip(teacher, num_kept, strict=True):
        order = logits.argsort(descending=True)[:kept]
        relative = logits - logits.max()
        rest = relative.clone()
        rest[order] = -math.inf
        padding = top_k - kept
        ids.append(torch.cat((order, order[:1].expand(padding))))
        gaps.append(torch.cat((-relative[order], torch.full((padding,), math.inf))))
        tails.append(torch.stack([(rest * s).logsumexp(0) for s in NODES]))
    return SparseTargets(
        torch.stack(ids), torch.stack(gaps).float(), torch.stack(tails).float(), NODES
    )


def with_draws(
    targets: SparseTargets,
    teacher: torch.Tensor,
    num_draws: int,
    drawn_at: float,
    generator: torch.Generator,
) -> SparseTargets:
    """``targets`` with draws from the tail at temperature ``drawn_at``, ids of all J columns."""
    rest = teacher.scatter(1, targets.kept_ids_NK, -math.inf)
    has_tail = rest.amax(1) > -math.inf
    weights = (rest / drawn_at).softmax(1).nan_to_num(1.0)
    drawn = torch.multinomial(weights, num_draws, replacement=True, generator=generator)
    counts = torch.zeros_like(teacher, dtype=torch.int64)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn))
    counts *= has_tail[:, None]
    # Distinct ids first, padding of count 0 behind them, as the loader hands them over.
    columns = int((counts > 0).sum(1).max().clamp_min(1))
    ids = counts.argsort(dim=1, descending=True, stable=True)[:, :columns]
    counts = counts.gather(1, ids)
    gaps = teacher.amax(1, keepdim=True) - teacher.gather(1, ids)
    is_drawn = counts > 0
    return SparseTargets(
        targets.kept_ids_NK,
        targets.gaps_NK,
        targets.tail_log_mass_NM,
        targets.inverse_temperatures,
        SparseSamples(
            ids * is_drawn, counts.to(torch.uint8), (gaps * is_drawn).float(), 1 / drawn_at
        ),
    )


def with_moments(
    targets: SparseTargets,
    teacher: torch.Tensor,
    head_VD: torch.Tensor,
    basis_dD: torch.Tensor,
    center_e: torch.Tensor | None = None,
) -> SparseTargets:
    """``targets`` with the exact moments of the teacher's tails in a basis: one coefficient for
    each position, whose row of the synthesis is what the position has."""
    dim = len(basis_dD)
    center = torch.zeros(dim + 1) if center_e is None else center_e
    rest = teacher.clone()
    for row, ids, gaps in zip(rest, targets.kept_ids_NK, targets.gaps_NK, strict=True):
        row[ids[gaps < math.inf]] = -math.inf
    numbers = []
    for s in targets.inverse_temperatures:
        mass = (rest * s).exp().sum(1, keepdim=True) / (teacher * s).exp().sum(1, keepdim=True)
        r = (rest * s).softmax(1).nan_to_num(0.0)
        entropy = -torch.special.xlogy(r, r).sum(1, keepdim=True)
        moment = r @ head_VD.double() @ basis_dD.double().T
        numbers.append(mass * (torch.cat((moment, entropy), 1) - center.double()))
    stacked_Nne = torch.stack(numbers, 1).float()
    tables = MomentTables(
        basis_dD=basis_dD.float(),
        table_Vd=head_VD.float() @ basis_dD.float().T - center[:-1].float(),
        entropy_center=center[-1].float(),
        synthesis_Jne=stacked_Nne,
        mean_ne=torch.zeros_like(stacked_Nne[0]),
        inverse_temperatures=targets.inverse_temperatures,
    )
    moments = TailMoments(torch.eye(len(teacher), dtype=torch.int16), tables)
    return replace(targets, moments=moments)


def samples(
    teacher: torch.Tensor, num_draws: int, drawn_at: float, generator: torch.Generator
) -> SparseTargets:
    """Targets of a cache of samples: ids drawn at ``drawn_at`` from all ids."""
    weights = (teacher / drawn_at).softmax(1)
    drawn = torch.multinomial(weights, num_draws, replacement=True, generator=generator)
    counts = torch.zeros_like(teacher).scatter_add_(1, drawn, torch.ones_like(drawn).double())
    num_ids = (counts > 0).sum(1)
    ids = counts.argsort(dim=1, descending=True, stable=True)[:, : int(num_ids.max())]
    counts = counts.gather(1, ids)
    gaps = drawn_at * (counts[:, :1] / counts).log()
    is_drawn = counts > 0
    return SparseTargets(
        torch.where(is_drawn, ids, ids[:, :1]),
        gaps.masked_fill(~is_drawn, math.inf).float(),
        torch.full((len(teacher), 1), -math.inf),
        (1 / drawn_at,),
    )
