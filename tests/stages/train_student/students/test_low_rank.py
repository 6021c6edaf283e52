"""Adapters beside the projections of every family, and what they become when they are merged."""

from typing import Any

import pytest
import torch
from torch import Tensor

from stages.train_student.students.low_rank import add_adapters, is_adapter, merge_adapters
from tests.support.hybrid_students import TEACHERS, make_hybrid, make_ids, make_teacher


def adapted(name: str, *, rank: int = 4, seed: int = 0, **changes: Any) -> Any:
    """A student with adapters that do something."""
    student = make_hybrid(make_teacher(name, **changes), trained="lora", window=6)
    add_adapters(student, rank, seed)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in student.named_parameters():
            if ".lora_B." in key:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return student


@pytest.mark.parametrize("name", TEACHERS)
def test_merged_weights_compute_what_the_adapters_did(name: str) -> None:
    teacher = make_teacher(name)
    student, plain = adapted(name), make_hybrid(teacher, trained="all", window=6)
    merged = merge_adapters(student)
    ids = make_ids(2, 19)
    with torch.no_grad():
        with_adapters, after, without = (
            model.eval()(ids).logits for model in (student, merged, plain)
        )
    torch.testing.assert_close(after, with_adapters, atol=2e-4, rtol=1e-4)
    assert (with_adapters - without).abs().max() > 0.1
    assert merged.state_dict().keys() == plain.state_dict().keys()
    assert any(map(is_adapter, student.state_dict())), "the student itself stays as it was"


def test_only_projections_change_each_by_the_rank() -> None:
    teacher = make_teacher("qwen3")
    before, after = (
        model.state_dict()
        for model in (make_hybrid(teacher), merge_adapters(adapted("qwen3", rank=2)))
    )
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert len(changed) == 3 * 7  # layers, and q, k, v, o, gate, up, down of each
    assert all(key.endswith("_proj.weight") for key in changed)
    for key in changed:
        assert torch.linalg.matrix_rank(after[key] - before[key], atol=1e-4) == 2


def test_what_is_new_and_the_adapters_are_trained_alone() -> None:
    student = adapted("llama with biases")
    for key, parameter in student.named_parameters():
        is_new = any(part in key for part in ("feature_", "_gate.")) and ".mlp." not in key
        assert parameter.requires_grad == (is_new or is_adapter(key)), key
    student(make_ids(1, 9)).logits.square().sum().backward()
    for key, parameter in student.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key


def test_frozen_copies_keep_their_precision_and_adapters_are_float32() -> None:
    student = adapted("llama", dtype=torch.bfloat16)
    dtypes = {parameter.requires_grad: set[torch.dtype]() for parameter in student.parameters()}
    for parameter in student.parameters():
        dtypes[parameter.requires_grad].add(parameter.dtype)
    assert dtypes == {True: {torch.float32}, False: {torch.bfloat16}}
    merged = merge_adapters(student)
    for key, parameter in merged.named_parameters():
        is_wide = key.endswith("_proj.weight") or ".self_attn." in key
        assert parameter.dtype == (torch.float32 if is_wide else torch.bfloat16), key


def test_adapters_are_a_function_of_the_seed_alone() -> None:
    def drawn(seed: int) -> dict[str, Tensor]:
        student = adapted("llama", seed=seed)
        return {key: value for key, value in student.state_dict().items() if ".lora_A." in key}

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = drawn(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second, other = drawn(0), drawn(1)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)
