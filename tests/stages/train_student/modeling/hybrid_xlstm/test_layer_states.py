"""The states of single layers: those of Hugging Face's own model, and nothing else is changed."""

import pytest
import torch

from tests.support.hybrid_students import (
    TEACHERS,
    make_hybrid,
    make_ids,
    make_noisy_hybrid,
    make_teacher,
    starts,
)

IDS = make_ids(2, 40)


@pytest.mark.parametrize("name", TEACHERS)
@torch.no_grad()
def test_an_unconverted_student_has_its_teachers_hidden_states(name: str) -> None:
    teacher = make_teacher(name)
    expected = teacher(IDS, output_hidden_states=True).hidden_states
    found = make_hybrid(teacher, pattern="attention").layer_states(IDS, None, (1, 2, 3))
    assert len(expected) == len(found.layers_BTD) + 1  # its first is the embedding's output
    for layer_BTD, expected_BTD in zip(found.layers_BTD, expected[1:], strict=True):
        torch.testing.assert_close(layer_BTD, expected_BTD, rtol=0, atol=1e-4)
    assert found.layers_BTD[-1] is found.hidden_BTD


@torch.no_grad()
def test_documents_do_not_see_each_other() -> None:
    student = make_noisy_hybrid(make_teacher("llama"), window=8)
    whole = student.layer_states(IDS, starts(2, 40, (0, 13), (1, 25)), (1, 2)).layers_BTD
    alone = student.layer_states(IDS[:1, 13:], None, (1, 2)).layers_BTD
    for in_row, by_itself in zip(whole, alone, strict=True):
        torch.testing.assert_close(in_row[:1, 13:], by_itself, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layers", [(), (2,), (1, 3), (3,)])
def test_only_the_layers_asked_for_are_there_and_the_rest_is_the_same(
    layers: tuple[int, ...],
) -> None:
    student = make_noisy_hybrid(make_teacher("llama"), window=8)
    marks = starts(2, 40, (0, 13))
    every = student.layer_states(IDS, marks, (1, 2, 3))
    found = student.layer_states(IDS, marks, layers)
    assert len(found.layers_BTD) == len(layers)
    for number, layer_BTD in zip(layers, found.layers_BTD, strict=True):
        assert torch.equal(layer_BTD, every.layers_BTD[number - 1])
    assert torch.equal(found.hidden_BTD, student.hidden_states(IDS, marks))


def test_gradients_are_the_same_where_activations_are_computed_again() -> None:
    student = make_noisy_hybrid(make_teacher("llama"), window=8, trained="all")
    trained = [p for p in student.parameters() if p.requires_grad]
    found = []
    for is_on in (False, True):
        student.checkpoint_activations(is_on)
        states = student.layer_states(IDS, None, (1, 3)).layers_BTD
        loss = torch.stack([state.square().mean() for state in states]).sum()
        found.append(torch.autograd.grad(loss, trained, allow_unused=True))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    assert any(gradient is not None and gradient.any() for gradient in found[0])
