"""Random signs keep norms on average; a projection is used as it is."""

from typing import Any

import numpy as np
import pytest
import torch

from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.sketch import SketchSpec
from cache_format.tables.random_projection import sketch_signs
from stages.cache_teacher.targets.hidden_projection import UnitSketch
from tests.support.sample_cache import sample_spec

place = torch.from_numpy


def spec_of(**changes: Any) -> CacheSpec:
    settings: dict[str, Any] = {"kind": "rademacher", "dim": 16}
    return sample_spec(sketch=SketchSpec(**(settings | changes)))


def test_the_projection_is_the_layer_mean_times_the_format_s_signs() -> None:
    one_PD, other_PD = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    found = UnitSketch(spec_of(), 5, None, place).of([one_PD, other_PD], 5)
    signs_Dd = torch.from_numpy(sketch_signs(7, 5, 16, 16)).float()
    assert found.shape == (5, 1, 16)
    torch.testing.assert_close(found[:, 0], (one_PD + other_PD) / 2 @ signs_Dd / 4)


@pytest.mark.parametrize(
    "changes", [{}, {"kind": "pca", "dim": 8, "projection_sha256": "0" * 64}], ids=["signs", "pca"]
)
def test_each_layer_is_projected_by_itself(changes: dict[str, Any]) -> None:
    states_LPD = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    projection_Dd = np.eye(16, 8, dtype=np.float32)
    both = UnitSketch(spec_of(hidden_states="each:1,2", **changes), 5, projection_Dd, place)
    assert both.layers == (1, 2)
    found_PLd = both.of(states_LPD, 5)
    assert found_PLd.shape == (5, 2, 8 if changes else 16)
    for at, layer in enumerate(both.layers):
        alone = UnitSketch(
            spec_of(hidden_states=f"layers:{layer}", **changes), 5, projection_Dd, place
        )
        torch.testing.assert_close(found_PLd[:, at], alone.of([states_LPD[at]], 5)[:, 0])


def test_every_unit_has_its_own_projection() -> None:
    state_PD = torch.ones(1, 16)
    one, other = (UnitSketch(spec_of(), unit, None, place).of([state_PD] * 2, 1) for unit in (0, 1))
    assert not torch.equal(one, other)


def test_projected_norms_are_unbiased() -> None:
    x_PD = torch.linspace(-1, 2, 16)[None]
    estimates = [
        float(UnitSketch(spec_of(), unit, None, place).of([x_PD] * 2, 1).square().sum())
        for unit in range(800)
    ]
    mean = sum(estimates) / len(estimates)
    # The estimate's deviation is ‖x‖²·√(2/d) at most, here over 800 draws.
    assert mean == pytest.approx(float(x_PD.square().sum()), rel=4 * (2 / 16 / 800) ** 0.5)


def test_without_a_sketch_no_hidden_layers_are_requested() -> None:
    sketch = UnitSketch(spec_of(kind="none", dim=0), 0, None, place)
    assert sketch.layers == ()
    assert sketch.of([], 3).shape == (3, 1, 0)


def test_random_layers_differ_from_unit_to_unit() -> None:
    spec = spec_of(hidden_states="random_layers:1")
    layers = {UnitSketch(spec, unit, None, place).layers for unit in range(20)}
    assert layers == {(1,), (2,)}


def test_a_given_projection_matrix_is_used_unchanged() -> None:
    projection_Dd = np.eye(16, 8, dtype=np.float32)
    spec = spec_of(kind="pca", dim=8, projection_sha256="0" * 64, hidden_states="last")
    state_PD = torch.arange(32.0).view(2, 16)
    found = UnitSketch(spec, 3, projection_Dd, place).of([state_PD], 2)
    assert torch.equal(found[:, 0], state_PD[:, :8])
