"""Principal components are those of the hidden states."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cache_format.tables.principal_components import require_orthonormal
from cache_format.tables.random_projection import chosen_layers
from stages.cache_teacher.corpus.packing import PackedUnit, pack
from stages.cache_teacher.setup.pca import principal_components
from stages.cache_teacher.teacher.teacher import Teacher
from stages.cache_teacher.teacher.teacher_files import resolve_teacher
from tests.support.tiny import tiny_cache_config, tiny_texts

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(tiny_teacher: Path) -> Teacher:
    return Teacher(resolve_teacher(tiny_cache_config(tiny_teacher, "unused")), CPU)


@pytest.fixture(scope="module")
def packed(teacher: Teacher) -> PackedUnit:
    ids = teacher.source.document_tokenizer.encode(tiny_texts(20))
    return pack(ids, 0, 32)


@pytest.mark.parametrize("hidden_states", ["mean_over_layers", "last"])
def test_principal_components_hold_the_most_energy(
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


def test_principal_components_of_each_layer_are_those_of_all_their_states(
    teacher: Teacher, packed: PackedUnit
) -> None:
    components_Dd = principal_components(teacher, packed, "each:1,2", 8, rows_per_forward=3)
    require_orthonormal(components_Dd)
    ids, starts = packed.token_ids_RT[:, :-1], packed.document_starts
    _, states = teacher.forward(ids, starts, layers=(1, 2))
    hidden_PD = torch.cat([state.flatten(0, 1) for state in states]).double()
    largest = torch.linalg.svdvals(hidden_PD)[:8].square().sum()
    held = (hidden_PD @ torch.from_numpy(components_Dd).double()).square().sum()
    assert float(held) == pytest.approx(float(largest), rel=1e-5)


def test_principal_components_are_those_of_positions_that_are_no_context(
    teacher: Teacher, packed: PackedUnit
) -> None:
    few = packed.rows(0, 3)
    is_context_RT = np.zeros(few.token_ids_RT[:, 1:].shape, np.bool_)
    is_context_RT[:, 10:] = is_context_RT[1] = True
    components_Dd = principal_components(
        teacher, replace(few, is_context_RT=is_context_RT), "last", 8, rows_per_forward=2
    )
    _, (last_BTD,) = teacher.forward(few.token_ids_RT[:, :-1], few.document_starts, layers=(2,))
    hidden_PD = last_BTD[torch.from_numpy(~is_context_RT)].double()
    assert len(hidden_PD) == 20
    largest = torch.linalg.svdvals(hidden_PD)[:8].square().sum()
    held = (hidden_PD @ torch.from_numpy(components_Dd).double()).square().sum()
    assert float(held) == pytest.approx(float(largest), rel=1e-5)


def test_principal_components_of_too_few_positions_are_refused(
    teacher: Teacher, packed: PackedUnit
) -> None:
    few = packed.rows(0, 0)
    with pytest.raises(ValueError, match=r"8 principal components need .* first unit has 0"):
        principal_components(teacher, few, "last", 8, rows_per_forward=3)
