"""The sketch keeps norms on average, is drawn anew per unit, and refuses NaN."""

import pytest
import torch

from cache_format.sketch import sketch_signs
from cache_format.spec import SketchSpec
from stages.cache_teacher.sketch import sketch, sketch_matrix
from stages.cache_teacher.targets import NonFiniteError

SPEC = SketchSpec(kind="rademacher", dim=16)
CPU = torch.device("cpu")


def test_the_matrix_is_the_format_s_signs_scaled() -> None:
    matrix_Dd = sketch_matrix(SPEC, 24, seed=3, unit=5, device=CPU)
    assert matrix_Dd.dtype == torch.float32
    expected = torch.from_numpy(sketch_signs(3, 5, 24, 16)).float() / 4
    assert torch.equal(matrix_Dd, expected)


def test_every_unit_has_its_own() -> None:
    one, other = (sketch_matrix(SPEC, 24, seed=3, unit=unit, device=CPU) for unit in (0, 1))
    assert not torch.equal(one, other)


def test_norms_survive_on_average() -> None:
    x_1D = torch.linspace(-1, 2, 48)[None]
    estimates = [
        float(sketch(x_1D, sketch_matrix(SPEC, 48, 0, unit, CPU)).square().sum())
        for unit in range(800)
    ]
    mean = sum(estimates) / len(estimates)
    # The estimate's deviation is ‖x‖²·√(2/d) at most, here over 800 draws.
    assert mean == pytest.approx(float(x_1D.square().sum()), rel=4 * (2 / 16 / 800) ** 0.5)


def test_hidden_states_that_are_not_finite_are_named() -> None:
    hidden_PD = torch.ones(5, 24)
    hidden_PD[3, 7] = torch.nan
    with pytest.raises(NonFiniteError) as caught:
        sketch(hidden_PD, sketch_matrix(SPEC, 24, 0, 0, CPU))
    assert caught.value.position == 3
