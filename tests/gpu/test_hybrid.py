"""The hybrid student on a GPU: its layers, alignment, documents and generation.

Layers against the same in float64 on a processor, the whole student against itself there.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.train_student.modeling.layers.document_masks import DocumentLayout, lay_out_documents
from stages.train_student.modeling.layers.normalized_mlstm import normalized_mlstm
from stages.train_student.modeling.layers.sliding_window import sliding_window_attention
from tests.support.devices import no_host_waits
from tests.support.hybrid_students import (
    TEACHERS,
    make_ids,
    make_noisy_hybrid,
    make_teacher,
    starts,
)

pytestmark = pytest.mark.gpu
BATCH, HEADS, GROUP, POSITIONS, WIDTH = 2, 2, 3, 201, 32
IDS = make_ids(2, 40)
MARKS = starts(2, 40, (0, 13), (0, 14), (1, 25))
SETTINGS: dict[str, Any] = {"pattern": "hybrid,mlstm,attention", "window": 6, "num_sinks": 2}
# Relative to the norm. In bfloat16, a gate's gradient is a difference of sums that were rounded.
BOUNDS = {torch.float32: 2e-4, torch.bfloat16: 0.15}
dtypes = pytest.mark.parametrize("dtype", BOUNDS, ids=str)
has_documents = pytest.mark.parametrize("has_documents", [True, False])


def assert_near(found: Tensor, expected: Tensor, bound: float) -> None:
    difference = torch.linalg.vector_norm(found.detach().cpu().double() - expected.detach().cpu())
    assert difference < bound * torch.linalg.vector_norm(expected.detach().double())


def layer_inputs(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Query, key and value, two gates, and weights of the outputs."""
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, HEADS, POSITIONS, WIDTH)
    query = torch.randn(BATCH, HEADS, GROUP, POSITIONS, WIDTH, generator=generator)
    key, value = (torch.randn(shape, generator=generator) for _ in range(2))
    gates = [torch.randn(shape[:3], generator=generator) * 2 for _ in range(2)]
    return [x.to(dtype) for x in (query, key, value)], gates, torch.rand_like(query) - 0.5


Layer = Callable[[list[Tensor], DocumentLayout], Tensor]


def with_gradients(
    layer: Layer, inputs: list[Tensor], weights: Tensor, *, is_packed: bool
) -> list[Tensor]:
    """Outputs, and the gradients of their weighted sum by all inputs."""
    device = inputs[0].device
    leaves = [x.detach().requires_grad_() for x in inputs]
    marks = starts(BATCH, POSITIONS, (0, 7), (0, 63), (0, 64), (1, 150)) if is_packed else None
    like = torch.empty(BATCH, POSITIONS, 1, device=device)
    outputs = layer(leaves, lay_out_documents(marks, like, 4, has_state=False))
    scalar = (outputs.to(weights.dtype) * weights.to(device)).sum()
    return [outputs, *torch.autograd.grad(scalar, leaves)]


def check_layer(
    layer: Layer, inputs: list[Tensor], weights: Tensor, device: torch.device, *, is_packed: bool
) -> None:
    found = with_gradients(layer, [x.to(device) for x in inputs], weights, is_packed=is_packed)
    exact = [x.double() for x in inputs]
    expected = with_gradients(layer, exact, weights.double(), is_packed=is_packed)
    for mine, other in zip(found, expected, strict=True):
        assert_near(mine, other, BOUNDS[inputs[0].dtype])


@has_documents
@pytest.mark.parametrize("chunk_length", [16, 64, 256])
@dtypes
def test_the_averaging_mlstm_is_that_of_float64(
    device: torch.device, dtype: torch.dtype, chunk_length: int, has_documents: bool
) -> None:
    qkv, gates, weights = layer_inputs(dtype)
    features = [qkv[0].float().softmax(-1).to(dtype), qkv[1].float().softmax(-1).to(dtype), qkv[2]]

    def run(leaves: list[Tensor], layout: DocumentLayout) -> Tensor:
        q, k, v, i, f = leaves
        return normalized_mlstm((q, k), v, (i, f), layout, None, chunk_length)[0]

    check_layer(run, [*features, *gates], weights, device, is_packed=has_documents)


@has_documents
@pytest.mark.parametrize(("window", "num_sinks"), [(2, 0), (16, 4), (64, 4), (500, 1)])
@dtypes
def test_the_window_with_sinks_is_that_of_float64(
    device: torch.device, dtype: torch.dtype, window: int, num_sinks: int, has_documents: bool
) -> None:
    qkv, _, weights = layer_inputs(dtype)

    def run(leaves: list[Tensor], layout: DocumentLayout) -> Tensor:
        q, k, v = leaves
        return sliding_window_attention(q, k, v, window, num_sinks, layout, None)[0]

    check_layer(run, qkv, weights, device, is_packed=has_documents)


@pytest.mark.parametrize("name", TEACHERS)
def test_the_student_of_every_family_is_the_one_of_a_processor(
    device: torch.device, name: str
) -> None:
    """Hidden states, the errors of the alignment, and its gradients."""
    results = []
    for place in (torch.device("cpu"), device):
        student = make_noisy_hybrid(make_teacher(name), **SETTINGS).to(place)
        ids, marks = IDS.to(place), MARKS.to(place)
        errors_LBT = student.alignment(ids, marks).errors_LBT
        errors_LBT.mean().backward()
        grads = [student.get_parameter(name).grad for name in student.new_parameters()]
        with torch.no_grad():
            results.append([student.hidden_states(ids, marks), errors_LBT, *grads])
    for expected, found in zip(*results, strict=True):
        assert_near(found, expected, 2e-3)


@pytest.mark.parametrize("trained", ["new", "all"])
def test_bfloat16_steps_are_near_float32(device: torch.device, trained: str) -> None:
    teacher = make_teacher("qwen2", torch.bfloat16)
    exact = make_noisy_hybrid(teacher, trained=trained, **SETTINGS).float()
    student = make_noisy_hybrid(teacher, trained=trained, **SETTINGS).to(device)
    ids, marks = IDS.to(device), MARKS.to(device)
    with torch.autocast(device.type, torch.bfloat16):
        errors_LBT = student.alignment(ids, marks).errors_LBT
        hidden = student.hidden_states(ids, marks)
    assert errors_LBT.dtype == torch.float32
    assert_near(hidden, exact.hidden_states(IDS, MARKS), 0.05)
    (errors_LBT.mean() + hidden.float().square().mean()).backward()
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.dtype == torch.float32
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_what_another_document_holds_changes_no_bit(
    device: torch.device, dtype: torch.dtype
) -> None:
    student = make_noisy_hybrid(make_teacher("qwen3"), **SETTINGS).to(device, dtype)
    is_own = torch.zeros(2, 40, dtype=torch.bool)
    is_own[0, 14:] = is_own[1, :25] = True
    found = [
        student.hidden_states(ids.to(device), MARKS.to(device))[is_own.to(device)]
        for ids in (IDS, torch.where(is_own, IDS, IDS.flip(1)))
    ]
    assert torch.equal(*found)


@torch.inference_mode()
def test_token_by_token_gives_the_logits_of_the_whole(device: torch.device) -> None:
    student = make_noisy_hybrid(make_teacher("llama"), **SETTINGS).to(device)
    ids = IDS.to(device)
    whole = student(ids).logits
    output = student(ids[:, :15], use_cache=True)
    parts = [output.logits]
    for position in range(15, 40):
        output = student(ids[:, position : position + 1], state=output.state, use_cache=True)
        parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=2e-3, atol=2e-3)
    text = student.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
    )
    expected = ids
    for _ in range(8):
        expected = torch.cat([expected, student(expected).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(text, expected)


@pytest.mark.parametrize("objective", ["distillation", "alignment"])
def test_a_step_never_waits_for_the_device(device: torch.device, objective: str) -> None:
    if device.type == "cpu":
        pytest.skip("on a CPU, PyTorch's attention under a mask makes numbers on the host")
    settings = SETTINGS | {"pattern": "hybrid,mlstm,window", "trained": "all"}
    student = make_noisy_hybrid(make_teacher("qwen2"), **settings).to(device)
    ids, marks = IDS.to(device), MARKS  # marks stay on the host, as those of a batch do

    def step() -> None:
        if objective == "alignment":
            student.alignment(ids, marks).errors_LBT.mean().backward()
        else:
            student.hidden_states(ids, marks).sum().backward()

    step()
    with no_host_waits(device):
        step()
