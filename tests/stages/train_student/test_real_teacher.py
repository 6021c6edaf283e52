"""The tail between its nodes, for a teacher that was trained: what stage one stores of the demo's
teacher, and what stage two makes of it, against its full logits in float64."""

import math

import numpy as np
import pytest
import torch

from benchmarks.positions import demo_teacher
from cache_format.metadata.spec_parts.targets import KeptLogits, TargetSpec
from stages.cache_teacher.targets.top_k import make_maker
from stages.train_student.data.targets.sparse_targets import SparseTargets
from tests.support.sample_cache import sample_shared

NODES = (0.5, 0.625, 0.75, 0.875, 1.0)


@pytest.fixture(scope="module")
def stored() -> tuple[SparseTargets, torch.Tensor]:
    """Targets of 512 positions, and float64 logits relative to the largest, [512, V]."""
    teacher, packed, _ = demo_teacher(1, num_documents=20)
    hidden_BTD, _ = teacher.forward(packed.token_ids_RT[:, :-1], packed.document_starts, layers=())
    hidden_PD = hidden_BTD[0].clone()
    labels_P = torch.from_numpy(packed.token_ids_RT[0, 1:].astype(np.int64))
    kept = KeptLogits(top_k=64, keep_mass=1.0, inverse_temperatures=NODES)
    spec = TargetSpec(kind="top_k", kept=kept)
    maker = make_maker(teacher.head, spec, sample_shared(), chunk=128, compile="off")
    made = maker.make(hidden_PD, labels_P, torch.empty(len(hidden_PD), 0))
    targets = SparseTargets(
        made.kept_ids_PK.long().clone(),
        made.logit_gaps_PK.clone(),
        made.tail_log_mass_PN.clone(),
        NODES,
    )
    logits_PV = teacher.head.logits(hidden_PD).double()
    return targets, logits_PV - logits_PV.amax(1, keepdim=True)


def test_interpolated_tail_log_mass_is_within_0_002_nats(
    stored: tuple[SparseTargets, torch.Tensor],
) -> None:
    targets, logits_PV = stored
    rest_PV = logits_PV.scatter(1, targets.kept_ids_NK, -math.inf)
    for temperature in np.linspace(1, 2, 41).tolist():
        exact_P = (rest_PV / temperature).logsumexp(1)
        errors_P = (targets.tail_log_mass(1 / temperature) - exact_P).abs()
        assert errors_P.max() <= 0.002


def test_with_the_end_nodes_alone_the_tail_error_exceeds_the_bound(
    stored: tuple[SparseTargets, torch.Tensor],
) -> None:
    """From the two ends alone the bound does not hold: the nodes between are what is tested."""
    targets, logits_PV = stored
    ends = SparseTargets(
        targets.kept_ids_NK, targets.gaps_NK, targets.tail_log_mass_NM[:, [0, -1]], (0.5, 1.0)
    )
    rest_PV = logits_PV.scatter(1, targets.kept_ids_NK, -math.inf)
    exact_P = (rest_PV / 1.4).logsumexp(1)
    assert (ends.tail_log_mass(1 / 1.4) - exact_P).abs().max() > 0.02


@pytest.mark.parametrize("temperature", [1.0, 1.37, 2.0])
def test_probabilities_are_those_of_the_full_distribution(
    stored: tuple[SparseTargets, torch.Tensor], temperature: float
) -> None:
    targets, logits_PV = stored
    logprobs, tail = targets.logprobs(temperature)
    exact_PK = (logits_PV / temperature).log_softmax(1).gather(1, targets.kept_ids_NK)
    assert (logprobs - exact_PK).abs().max() < 0.002
    torch.testing.assert_close(tail.exp(), 1 - exact_PK.exp().sum(1), atol=1e-3, rtol=0)
