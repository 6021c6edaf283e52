"""A teacher, a student and a head, to try a head of fewer columns on.

P positions, V ids, D width, E width of a student with other logits, K kept ids.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.positions import demo_teacher, read_logits
from stages.train_student.data.targets.sparse_targets import SparseTargets

TOP_K = 64
TEMPERATURE = 1.5
_STUDENT_NOISE = 0.6


@dataclass(frozen=True)
class Scene:
    """P positions of a teacher, and what a student of one matrix [D, D] starts from.

    ``student_PV``: the student's logits where they are not those of ``input_PD`` and the head.
    """

    teacher_PV: Tensor
    """Logits."""
    input_PD: Tensor
    head_VD: Tensor
    labels_P: Tensor
    student_PV: Tensor | None = None

    def part(self, rows: slice) -> "Scene":
        """Some positions."""
        assert self.student_PV is None
        return Scene(self.teacher_PV[rows], self.input_PD[rows], self.head_VD, self.labels_P[rows])

    def ranks_V(self) -> Tensor:
        """Ranks of the ids by the teacher's mean mass."""
        return self.teacher_PV.softmax(1).mean(0).argsort(descending=True).argsort()

    def targets(self) -> SparseTargets:
        """What a cache would have of the teacher."""
        gaps_PV = self.teacher_PV.amax(1, keepdim=True) - self.teacher_PV
        gaps_PK, ids_PK = gaps_PV.topk(TOP_K, largest=False)
        rest_PV = gaps_PV.scatter(1, ids_PK, math.inf)
        tail_P1 = (-rest_PV / TEMPERATURE).logsumexp(1, keepdim=True)
        return SparseTargets(ids_PK, gaps_PK, tail_P1, (1 / TEMPERATURE,))

    def student(self) -> tuple[Tensor, Tensor]:
        """Hidden states [P, E] and a head [V, E], whose product are the student's logits.

        In the first D of E the head is ``head_VD``, so that there gradients are those by its input.
        """
        if self.student_PV is None:
            return self.input_PD, self.head_VD
        one_hot_PE = torch.cat((torch.zeros_like(self.input_PD), torch.eye(len(self.input_PD))), 1)
        return one_hot_PE, torch.cat((self.head_VD, self.student_PV.T), 1)


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


def full_scenes(path: Path, num_positions: int, width: int) -> dict[str, Scene]:
    """Positions of a logits file, once for each of two students.

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
    near_PV = teacher_PV + _STUDENT_NOISE * noise_PV
    return {
        "near": replace(scene, student_PV=near_PV),
        "untrained": replace(scene, student_PV=noise_PV),
    }
