"""A teacher, a student and a head, to try a head of fewer columns on. Called by ``head_columns``.

P positions, V ids, D width, K kept ids, U ids that are named by some position.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.positions import demo_teacher, read_logits

TOP_K = 64
TEMPERATURE = 1.5
_STUDENT_NOISE = 0.6
_UNIFORM_SHARE = 0.2
_FIRST_RANK = 3


@dataclass(frozen=True)
class Scene:
    """P positions of a teacher, and what a student of one matrix [D, D] starts from."""

    teacher_PV: Tensor
    """Logits."""
    input_PD: Tensor
    head_VD: Tensor
    labels_P: Tensor

    def part(self, rows: slice) -> "Scene":
        """Some positions."""
        return Scene(self.teacher_PV[rows], self.input_PD[rows], self.head_VD, self.labels_P[rows])

    def mixture_V(self) -> Tensor:
        """What columns are drawn from: Zipf's law by the rank of an id's mean mass, and uniform."""
        num_ids = len(self.head_VD)
        order_V = self.teacher_PV.softmax(1).mean(0).argsort(descending=True)
        zipf_V = torch.empty(num_ids)
        zipf_V[order_V] = 1 / (torch.arange(num_ids) + _FIRST_RANK)
        return (1 - _UNIFORM_SHARE) * zipf_V / zipf_V.sum() + _UNIFORM_SHARE / num_ids

    def kept(self) -> "Kept":
        """What a cache would have of the teacher."""
        logp_PV = (self.teacher_PV / TEMPERATURE).log_softmax(1)
        ids_PK = self.teacher_PV.topk(TOP_K, 1).indices
        logp_PK = logp_PV.gather(1, ids_PK)
        log_tail_P = logp_PV.scatter_(1, ids_PK, -math.inf).logsumexp(1)
        return Kept(ids_PK, logp_PK.double(), log_tail_P.double(), self.labels_P)


@dataclass(frozen=True)
class Kept:
    """K kept ids and the mass of all others, at ``TEMPERATURE``; the labels."""

    ids_PK: Tensor
    logp_PK: Tensor
    log_p_tail_P: Tensor
    labels_P: Tensor

    def named_U(self) -> Tensor:
        """Ids that some position names."""
        ids = torch.cat((self.ids_PK.flatten(), self.labels_P))
        named_U: Tensor = ids.unique()  # type: ignore[no-untyped-call]
        return named_U


def demo_scene() -> Scene:
    """Eight rows of the demo's documents."""
    teacher, packed, _ = demo_teacher(8)
    hidden, labels = [], []
    for row in range(8):
        one = packed.rows(row, row + 1)
        hidden_BTD, _ = teacher.forward(one.token_ids_RT[:, :-1], one.document_starts, layers=())
        hidden.append(hidden_BTD[0])
        labels.append(torch.from_numpy(one.token_ids_RT[0, 1:].astype("int64")))
    hidden_PD = torch.cat(hidden)
    generator = torch.Generator().manual_seed(0)
    order_P = torch.randperm(len(hidden_PD), generator=generator)  # held out are the last of these
    noise_PD = torch.randn(hidden_PD.shape, generator=generator)
    return Scene(
        teacher_PV=teacher.head.logits(hidden_PD)[order_P],
        input_PD=(hidden_PD + _STUDENT_NOISE * hidden_PD.std() * noise_PD)[order_P],
        head_VD=teacher.head_weight.detach()[: teacher.source.spec.vocab_size].float(),
        labels_P=torch.cat(labels)[order_P],
    )


def full_scene(path: Path, num_positions: int, width: int) -> tuple[Scene, dict[str, Tensor]]:
    """Positions of a logits file, and the logits of students, [P, V].

    The teacher's mass beyond the file is spread as the ids' frequency is. A student near it has its
    logits with noise, an untrained one has nothing but noise. Inputs and head are random.
    """
    positions = read_logits(path)
    num_ids, generator = positions.vocab_size, torch.Generator().manual_seed(0)
    ids, logits = (torch.from_numpy(array) for array in (positions.ids, positions.logits))
    log_z = torch.from_numpy(positions.log_z[:, 1:])
    known = (logits - log_z).exp()
    frequency_V = torch.zeros(num_ids, dtype=torch.float64)
    frequency_V.index_add_(0, ids.flatten().long(), known.flatten())
    frequency_V = frequency_V / frequency_V.sum() + 1 / num_ids
    rest_PV = frequency_V.repeat(num_positions, 1)
    rest_PV.scatter_(1, ids[:num_positions].long(), 0.0)
    left_P1 = (1 - known[:num_positions].sum(1, keepdim=True)).clamp_min(1e-6)
    rest_PV *= left_P1 / rest_PV.sum(1, keepdim=True)
    rest_PV.scatter_(1, ids[:num_positions].long(), known[:num_positions])
    teacher_PV = rest_PV.log().float()
    scene = Scene(
        teacher_PV,
        torch.randn(num_positions, width, generator=generator),
        torch.randn(num_ids, width, generator=generator) / width**0.5,
        torch.from_numpy(positions.label[:num_positions]).long(),
    )
    noise_PV = torch.randn(teacher_PV.shape, generator=generator)
    return scene, {"near": teacher_PV + _STUDENT_NOISE * noise_PV, "untrained": noise_PV}
