"""Teacher and student compared layer by layer: the teacher's outputs, the error, its gradient."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.hybrid_students import (
    TEACHERS,
    make_hybrid,
    make_ids,
    make_noisy_hybrid,
    make_teacher,
    starts,
)

names = pytest.mark.parametrize("name", TEACHERS)
IDS = make_ids(2, 40)
MARKS = starts(2, 40, (0, 13), (0, 14), (1, 25))
DOCUMENTS = ((0, 0, 13), (0, 13, 14), (0, 14, 40), (1, 0, 25), (1, 25, 40))


@torch.no_grad()
def attention_of_teacher(teacher: Any, ids: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """What each attention layer gets, what its heads give, and the last states."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    handles = []
    for layer in teacher.model.layers:
        attention = layer.self_attn

        def keep_input(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
            inputs.append(kwargs["hidden_states"])

        def keep_output(_: Any, args: tuple[Tensor]) -> None:
            outputs.append(args[0])

        handles.append(attention.register_forward_pre_hook(keep_input, with_kwargs=True))
        handles.append(attention.o_proj.register_forward_pre_hook(keep_output))
    hidden = teacher.model(ids).last_hidden_state
    for handle in handles:
        handle.remove()
    return inputs, outputs, hidden


def prediction(student: Any, index: int, x_BTD: Tensor) -> Tensor:
    """What the heads of the student's mixer give from ``x_BTD``, by its own forward."""
    kept: list[Tensor] = []
    mixer = student.layers[index].self_attn
    handle = mixer.o_proj.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    layout = student.lay_out(torch.zeros(x_BTD.shape[:2]).long(), None, has_state=False)
    rotation = student.model.rotary_emb(x_BTD, torch.arange(x_BTD.shape[1])[None])
    mixer(x_BTD, rotation, layout, None, False)
    handle.remove()
    return kept[0]


@names
@torch.no_grad()
def test_errors_are_those_of_hooks_on_the_hugging_face_teacher(name: str) -> None:
    """For documents of a row, those of each document alone."""
    teacher = make_teacher(name)
    student = make_noisy_hybrid(teacher, pattern="hybrid,mlstm,hybrid", window=6, num_sinks=2)
    found = student.alignment(IDS, MARKS)
    assert found.errors_LBT.shape == (3, 2, 40)
    assert found.errors_LBT.dtype == torch.float32
    for row, first, stop in DOCUMENTS:
        inputs, outputs, hidden = attention_of_teacher(teacher, IDS[row : row + 1, first:stop])
        torch.testing.assert_close(
            found.hidden_BTD[row : row + 1, first:stop], hidden, rtol=0, atol=2e-5
        )
        for index, (x_BTD, target_BTD) in enumerate(zip(inputs, outputs, strict=True)):
            difference = prediction(student, index, x_BTD) - target_BTD
            expected = difference.square().sum(-1)[0]
            assert float(expected.sum()) > 0.0 or stop - first == 1
            error = found.errors_LBT[index, row, first:stop]
            torch.testing.assert_close(error, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_without_marks_a_row_is_one_document() -> None:
    teacher = make_teacher("qwen3")
    student = make_noisy_hybrid(teacher, window=6)
    found = student.alignment(IDS)
    marked = student.alignment(IDS, starts(2, 40, (0, 0), (1, 0)))
    assert torch.equal(found.errors_LBT, marked.errors_LBT)
    expected = teacher.model(IDS).last_hidden_state
    torch.testing.assert_close(found.hidden_BTD, expected, rtol=0, atol=2e-5)


def test_layers_without_new_parameters_are_not_compared() -> None:
    teacher = make_teacher("llama")
    student = make_noisy_hybrid(teacher, pattern="attention,hybrid,window", window=6)
    assert student.converted_layers == [1]
    found = student.alignment(IDS, MARKS)
    whole = make_noisy_hybrid(teacher, window=6).alignment(IDS, MARKS)
    assert found.errors_LBT.shape == (1, 2, 40)
    assert torch.equal(found.hidden_BTD, whole.hidden_BTD)
    unchanged = make_hybrid(teacher, pattern="window").alignment(IDS)
    assert unchanged.errors_LBT.shape == (0, 2, 40)


@pytest.mark.parametrize("trained", ["new", "mixers", "all"])
def test_gradients_reach_the_new_parameters_alone(trained: str) -> None:
    student = make_noisy_hybrid(make_teacher("qwen2"), window=6, trained=trained)
    found = student.alignment(IDS, MARKS)
    assert not found.hidden_BTD.requires_grad
    found.errors_LBT.sum().backward()
    new = set(student.new_parameters())
    for name, parameter in student.named_parameters():
        assert (parameter.grad is not None) == (name in new), name
        if name in new:
            assert parameter.grad.isfinite().all()
            assert parameter.grad.abs().sum() > 0, name


def test_a_layer_s_gradient_is_of_its_own_error_alone() -> None:
    student = make_noisy_hybrid(make_teacher("qwen2"), window=6)
    student.alignment(IDS).errors_LBT[1].sum().backward()
    for name, parameter in student.named_parameters():
        is_reached = parameter.grad is not None and bool(parameter.grad.any())
        assert is_reached == ("layers.1." in name and parameter.requires_grad), name


def test_the_gradient_is_that_of_finite_differences() -> None:
    student = make_noisy_hybrid(make_teacher("olmo2", torch.float64), window=6).double()

    def error() -> Tensor:
        total: Tensor = student.alignment(IDS, MARKS).errors_LBT.sum()
        return total

    torch.autograd.backward(error())
    generator = torch.Generator().manual_seed(8)
    for name in student.new_parameters():
        parameter = student.get_parameter(name)
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        analytic = float((parameter.grad * direction).sum())
        step, ends = 1e-5, []
        with torch.no_grad():
            for sign in (1, -2, 1):
                parameter.add_(direction, alpha=sign * step)
                ends.append(float(error()))
        numeric = (ends[0] - ends[1]) / (2 * step)
        assert numeric == pytest.approx(analytic, rel=1e-6, abs=1e-7), name


def test_activations_are_computed_again_with_the_same_gradient() -> None:
    teacher = make_teacher("qwen3")
    gradients = []
    for is_on in (False, True):
        student = make_noisy_hybrid(teacher, window=6, trained="all")
        student.checkpoint_activations(is_on)
        student.alignment(IDS, MARKS).errors_LBT.sum().backward()
        student(IDS, is_document_start=MARKS, labels=IDS).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in student.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_adam_brings_the_layers_nearer_to_the_teacher() -> None:
    teacher = make_teacher("qwen3")
    student = make_hybrid(teacher, window=4, num_sinks=1)
    new = [student.get_parameter(name) for name in student.new_parameters()]
    optimizer = torch.optim.Adam(new, lr=0.02)
    errors = []
    for _ in range(40):
        loss = student.alignment(IDS).errors_LBT.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float(loss.detach()))
    assert errors[-1] < 0.8 * errors[0]
    for key, tensor in teacher.state_dict().items():
        assert torch.equal(student.state_dict()[key], tensor)
