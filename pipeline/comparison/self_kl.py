"""KL(teacher ‖ what a cache keeps of it) over the whole vocabulary: what is lost of the teacher.

N positions, V vocabulary, D width.
"""

import torch
from torch import Tensor

from cache_format.metadata.spec_parts.targets import KL_TEMPERATURES, TargetSpec
from pipeline.comparison.kept_distribution import TargetsAt, log_probabilities
from stages.train_student.data.targets.dense_targets import DenseTargets
from stages.train_student.data.temperatures import covers

_CHUNK = 64


def self_kl(
    states_PD: Tensor, head_VD: Tensor, targets_at: TargetsAt, spec: TargetSpec, num_positions: int
) -> list[float | None]:
    """Nats at each of ``KL_TEMPERATURES``, a mean over ``num_positions`` of all P scored positions,
    evenly spread; None at a temperature that the cache does not hold.

    ``states_PD`` are the teacher's last hidden states.
    """
    chosen_N = spread(len(states_PD), num_positions).to(states_PD.device)
    found: list[float | None] = []
    for temperature in KL_TEMPERATURES:
        if not covers(spec.inverse_temperatures, temperature):
            found.append(None)
            continue
        total = 0.0
        for part in torch.split(chosen_N, _CHUNK):
            teacher = DenseTargets(states_PD[part], head_VD)
            log_p_NV = log_probabilities(teacher, spec, len(head_VD), temperature)
            log_q_NV = log_probabilities(targets_at(part), spec, len(head_VD), temperature)
            total += float((log_p_NV.exp() * (log_p_NV - log_q_NV)).sum())
        found.append(total / len(chosen_N))
    return found


def spread(num_positions: int, at_most: int) -> Tensor:
    """Numbers of positions, evenly spread, int64."""
    return torch.linspace(0, num_positions - 1, min(num_positions, at_most)).round().long()
