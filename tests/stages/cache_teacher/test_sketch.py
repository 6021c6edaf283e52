"""Random signs keep norms on average; principal components are those of the hidden states."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache_format.projection import require_orthonormal
from cache_format.sketch import chosen_layers, sketch_signs
from cache_format.spec import CacheSpec, SketchSpec
from stages.cache_teacher.packing import PackedUnit, pack, tokenize
from stages.cache_teacher.sketch import UnitSketch, principal_components
from stages.cache_teacher.teacher import Teacher
from stages.cache_teacher.teacher_files import resolve_teacher
from tests.cache_format.sample_cache import sample_spec
from tests.tiny import tiny_config, tiny_texts

CPU = torch.device("cpu")


def spec_of(**changes: Any) -> CacheSpec:
    settings: dict[str, Any] = {"kind": "rademacher", "dim": 16}
    return sample_spec(sketch=SketchSpec(**(settings | changes)))


def test_it_is_the_mean_times_the_format_s_signs() -> None:
    one_PD, other_PD = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    found = UnitSketch(spec_of(), 5, None, CPU).of([one_PD, other_PD], 5)
    signs_Dd = torch.from_numpy(sketch_signs(7, 5, 16, 16)).float()
    torch.testing.assert_close(found, (one_PD + other_PD) / 2 @ signs_Dd / 4)


def test_every_unit_has_its_own() -> None:
    state_PD = torch.ones(1, 16)
    one, other = (UnitSketch(spec_of(), unit, None, CPU).of([state_PD] * 2, 1) for unit in (0, 1))
    assert not torch.equal(one, other)


def test_norms_survive_on_average() -> None:
    x_PD = torch.linspace(-1, 2, 16)[None]
    estimates = [
        float(UnitSketch(spec_of(), unit, None, CPU).of([x_PD] * 2, 1).square().sum())
        for unit in range(800)
    ]
    mean = sum(estimates) / len(estimates)
    # The estimate's deviation is ‖x‖²·√(2/d) at most, here over 800 draws.
    assert mean == pytest.approx(float(x_PD.square().sum()), rel=4 * (2 / 16 / 800) ** 0.5)


def test_without_a_sketch_nothing_is_asked_for() -> None:
    sketch = UnitSketch(spec_of(kind="none", dim=0), 0, None, CPU)
    assert sketch.layers == ()
    assert sketch.of([], 3).shape == (3, 0)


def test_random_layers_differ_from_unit_to_unit() -> None:
    spec = spec_of(hidden_states="random_layers:1")
    layers = {UnitSketch(spec, unit, None, CPU).layers for unit in range(20)}
    assert layers == {(1,), (2,)}


@pytest.fixture(scope="module")
def teacher(tiny_teacher: Path) -> Teacher:
    return Teacher(resolve_teacher(tiny_config(tiny_teacher, "unused")), CPU)


@pytest.fixture(scope="module")
def packed(teacher: Teacher) -> PackedUnit:
    ids = tokenize(teacher.source.tokenizer, tiny_texts(20), teacher.source.spec.vocab_size)
    return pack(ids, 0, 32)


@pytest.mark.parametrize("hidden_states", ["mean_over_layers", "last"])
def test_principal_components_hold_the_most(
    teacher: Teacher, packed: PackedUnit, hidden_states: str
) -> None:
    """No other orthonormal directions hold more of the hidden states, by Eckart and Young."""
    components_Dd = principal_components(teacher, packed, hidden_states, 8, rows_per_forward=3)
    require_orthonormal(components_Dd)
    layers = chosen_layers(hidden_states, 2, 0, 0)
    _, states = teacher.forward(packed.token_ids_RT[:, :-1], packed.document_starts, layers=layers)
    hidden_PD = torch.stack(states).mean(0).flatten(0, 1).double()
    largest = torch.linalg.svdvals(hidden_PD)[:8].square().sum()
    held = (hidden_PD @ torch.from_numpy(components_Dd).double()).square().sum()
    assert float(held) == pytest.approx(float(largest), rel=1e-5)


def test_principal_components_of_too_few_positions(teacher: Teacher, packed: PackedUnit) -> None:
    few = packed.rows(0, 0)
    with pytest.raises(ValueError, match=r"8 principal components need .* first unit has 0"):
        principal_components(teacher, few, "last", 8, rows_per_forward=3)


def test_a_projection_is_used_as_it_is() -> None:
    projection_Dd = np.eye(16, 8, dtype=np.float32)
    spec = spec_of(kind="pca", dim=8, projection_sha256="0" * 64, hidden_states="last")
    state_PD = torch.arange(32.0).view(2, 16)
    found = UnitSketch(spec, 3, projection_Dd, CPU).of([state_PD], 2)
    assert torch.equal(found, state_PD[:, :8])
