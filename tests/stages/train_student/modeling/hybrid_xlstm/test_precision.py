"""Half precision: autocast in training, weights and states of generation."""

from typing import Any

import pytest
import torch

from tests.support.hybrid_students import make_ids, make_noisy_hybrid, make_teacher, starts

IDS = make_ids(2, 40)
MARKS = starts(2, 40, (0, 13), (1, 25))
SETTINGS: dict[str, Any] = {"pattern": "hybrid,mlstm,attention", "window": 6, "num_sinks": 2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained", ["new", "mixers", "all"])
def test_bf16_autocast_is_finite_and_near_float32(dtype: torch.dtype, trained: str) -> None:
    """Of a teacher in either precision; both losses, and all gradients."""
    teacher = make_teacher("qwen2", dtype)
    exact = make_noisy_hybrid(teacher, trained=trained, **SETTINGS).float()
    student = make_noisy_hybrid(teacher, trained=trained, **SETTINGS)
    with torch.no_grad():
        expected = exact.hidden_states(IDS, MARKS)
        errors = exact.alignment(IDS, MARKS).errors_LBT
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            hidden = student.hidden_states(IDS, MARKS)
        alignment = student.alignment(IDS, MARKS)
        loss = student(IDS, labels=IDS, is_document_start=MARKS).loss
    assert alignment.errors_LBT.dtype == torch.float32
    assert float((hidden - expected).norm() / expected.norm()) < 0.05
    assert float(alignment.errors_LBT.detach().sum()) == pytest.approx(float(errors.sum()), rel=0.1)
    (alignment.errors_LBT.mean() + loss).backward()
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.dtype == torch.float32
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("trained", ["new", "mixers", "all"])
def test_a_half_precision_teacher_needs_no_autocast(trained: str) -> None:
    student = make_noisy_hybrid(make_teacher("olmo2", torch.bfloat16), trained=trained, **SETTINGS)
    student.alignment(IDS, MARKS).errors_LBT.mean().backward()
    student(IDS, labels=IDS).loss.backward()
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.requires_grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_generation_equals_the_parallel_forward(dtype: torch.dtype) -> None:
    """Sums and what the mLSTM carries are at least float32, so going on adds no error."""
    exact = make_noisy_hybrid(make_teacher("qwen3"), trained="all", **SETTINGS)
    half = make_noisy_hybrid(make_teacher("qwen3"), trained="all", **SETTINGS).to(dtype)
    expected, whole = exact(IDS).logits, half(IDS).logits
    state: Any = None
    stepwise = []
    for position in range(40):
        output = half(IDS[:, position : position + 1], state=state, use_cache=True)
        state = output.state
        stepwise.append(output.logits)
    assert state.layers[0].memory.matrix_BNFH.dtype == torch.float32
    assert state.layers[0].window.key_BNRH.dtype == dtype
    unit = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11
    scale = float(expected.norm())
    assert float((whole - expected).norm()) < 8 * unit * scale
    assert float((torch.cat(stepwise, 1) - whole).norm()) < 4 * unit * scale


@torch.no_grad()
def test_extreme_queries_and_gates_are_finite() -> None:
    student = make_noisy_hybrid(make_teacher("llama"), **SETTINGS)
    for name in student.new_parameters():
        student.get_parameter(name).mul_(300.0)
    assert student.hidden_states(IDS, MARKS).isfinite().all()
    assert student.alignment(IDS, MARKS).errors_LBT.isfinite().all()
