"""Moments and entropies of tails against the dense formulas in float64.

P positions, V vocabulary, D width, n nodes.
"""

from typing import Any

import numpy as np
import pytest
import torch

from cache_format.metadata.spec_parts.targets import KeptLogits, TargetSpec
from cache_format.tables.shared_files import SharedFiles
from stages.cache_teacher.targets.coded.tail_moment import TailSums, padded_table, tail_sums
from stages.cache_teacher.targets.target_maker import IdTargets
from stages.cache_teacher.targets.teacher_head import Head
from stages.cache_teacher.targets.top_k import make_maker
from stages.compute.compiling import has_compiler
from tests.support.sample_cache import (
    sample_moment,
    sample_ranks,
    sample_shared,
    top_k_targets,
    with_moment,
)

NODES = (0.5, 0.625, 0.75, 0.875, 1.0)
V, D = 97, 6


def problem(scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states, [P, D], and a head, [V, D]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(20, D, generator=generator) * scale, torch.randn(V, D, generator=generator)


def spec_of(top_k: int, keep_mass: float = 1.0) -> TargetSpec:
    kept = KeptLogits(top_k=top_k, keep_mass=keep_mass, inverse_temperatures=NODES)
    return TargetSpec(kind="top_k", kept=kept)


def made(
    hidden_PD: torch.Tensor,
    head_VD: torch.Tensor,
    spec: TargetSpec,
    shared: SharedFiles | None = None,
    compile: Any = "off",
) -> IdTargets:
    head, labels_P = Head(head_VD, len(head_VD)), torch.zeros(len(hidden_PD), dtype=torch.int64)
    maker = make_maker(head, spec, shared or sample_shared(), chunk=7, compile=compile)
    return maker.make(hidden_PD, labels_P, torch.empty(len(hidden_PD), 0))


def sums_of(hidden_PD: torch.Tensor, head_VD: torch.Tensor, found: IdTargets) -> TailSums:
    """Of the head's own rows."""
    logits_PV = Head(head_VD, len(head_VD)).padded_logits(hidden_PD)
    _, _, *kept, _, _, _ = found
    table = padded_table(head_VD)
    every: Any = tail_sums
    sums: TailSums = every(logits_PV, *kept, table, inverse_temperatures=NODES)
    return sums


def dense(
    hidden_PD: torch.Tensor, head_VD: torch.Tensor, found: IdTargets, s: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """p, p·m and p·H at one node, float64."""
    logits_PV = hidden_PD.double() @ head_VD.double().T
    rest_PV = logits_PV.clone()
    for row, ids, num in zip(rest_PV, found.kept_ids_PK, found.num_kept_P, strict=True):
        row[ids[:num].long()] = -torch.inf
    r_PV = (rest_PV * s).softmax(1)
    p_P1 = (rest_PV * s).logsumexp(1, keepdim=True) - (logits_PV * s).logsumexp(1, keepdim=True)
    entropy_P1 = -torch.special.xlogy(r_PV, r_PV).sum(1, keepdim=True)
    return p_P1.exp(), p_P1.exp() * (r_PV @ head_VD.double()), p_P1.exp() * entropy_P1


@pytest.mark.parametrize(("top_k", "keep_mass"), [(1, 1.0), (12, 1.0), (40, 0.8), (96, 1.0)])
@pytest.mark.parametrize("scale", [0.01, 3.0, 12.0])
def test_sums_over_tails_equal_the_dense_formulas(
    top_k: int, keep_mass: float, scale: float
) -> None:
    hidden_PD, head_VD = problem(scale)
    found = made(hidden_PD, head_VD, spec_of(top_k, keep_mass))
    sums = sums_of(hidden_PD, head_VD, found)
    for n, s in enumerate(NODES):
        p, moment, entropy = dense(hidden_PD, head_VD, found, s)
        torch.testing.assert_close(sums.mass_CN[:, n : n + 1].double(), p, rtol=2e-4, atol=1e-6)
        torch.testing.assert_close(sums.moment_CNX[:, n].double(), moment, rtol=2e-4, atol=1e-6)
        torch.testing.assert_close(
            sums.entropy_CN[:, n : n + 1].double(), entropy, rtol=2e-4, atol=1e-6
        )


def test_positions_without_a_tail_have_no_moments() -> None:
    hidden_PD, head_VD = problem()
    found = made(hidden_PD, head_VD, spec_of(V))
    for numbers in sums_of(hidden_PD, head_VD, found):
        assert not numbers.any()


MOMENT_SPEC = with_moment(top_k_targets(keep_mass=1.0))
SHARED = SharedFiles(ranks=sample_ranks(), moment=sample_moment())


def test_coefficients_are_those_of_the_cache_s_transform() -> None:
    """As its README has it: c of A(u − μ), u = p·((B m, H) − c)."""
    generator = torch.Generator().manual_seed(1)
    hidden_PD = torch.randn(30, 16, generator=generator)
    head_VD = torch.randn(40, 16, generator=generator)
    found = made(hidden_PD, head_VD, MOMENT_SPEC, SHARED)
    moment = sample_moment()
    vectors = []
    for s in (0.5, 0.75, 1.0):
        p, of_moment, of_entropy = (part.numpy() for part in dense(hidden_PD, head_VD, found, s))
        projected = np.hstack([of_moment @ moment.basis.T, of_entropy])
        vectors.append(projected - p * moment.center)
    values = (np.hstack(vectors) - moment.transform.mean) @ moment.transform.analysis.T
    coefficients = found.moment_PJ.numpy()
    assert coefficients.dtype == np.int16
    assert np.abs(coefficients - values).max() <= 0.5 + 1e-3
    assert len(np.unique(coefficients)) > 5


def test_the_other_targets_are_those_without_moments() -> None:
    hidden_PD, head_VD = torch.randn(9, 16), torch.randn(40, 16)
    with_it = made(hidden_PD, head_VD, MOMENT_SPEC, SHARED)
    without = made(hidden_PD, head_VD, top_k_targets(keep_mass=1.0))
    assert without.moment_PJ.shape == (9, 0)
    for found, expected in zip(with_it[:-1], without[:-1], strict=True):
        assert torch.equal(found, expected)


@pytest.mark.skipif(not has_compiler(torch.device("cpu")), reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own
def test_compiled_moments_equal_eager_ones() -> None:
    generator = torch.Generator().manual_seed(2)
    hidden_PD = torch.randn(20, 16, generator=generator)
    head_VD = torch.randn(40, 16, generator=generator)
    plain, compiled = (
        made(hidden_PD, head_VD, MOMENT_SPEC, SHARED, mode).moment_PJ.int()
        for mode in ("off", "on")
    )
    assert (plain - compiled).abs().max() <= 1  # where rounding is on an edge
    assert (plain == compiled).float().mean() > 0.99
