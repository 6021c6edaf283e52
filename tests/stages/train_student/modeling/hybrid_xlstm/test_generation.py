"""Text generation: from a state, in parts, in padded batches, with beams."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.hybrid_students import EOS, TEACHERS, make_ids, make_noisy_hybrid, make_teacher

WINDOW, SINKS = 6, 2
PATTERN = "hybrid,attention,hybrid"
PROMPTS = [make_ids(1, 19), make_ids(1, 3) + 1, make_ids(1, 9) + 2]


@pytest.fixture(scope="module")
def student() -> Any:
    return make()


def make(name: str = "qwen3", pattern: str = "hybrid,window,mlstm") -> Any:
    return make_noisy_hybrid(make_teacher(name), pattern=pattern, window=WINDOW, num_sinks=SINKS)


def left_padded(prompts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Ids and mask of a batch; the padding is of ids that would change everything."""
    length = max(prompt.shape[1] for prompt in prompts)
    ids, mask = torch.full((len(prompts), length), EOS), torch.zeros(len(prompts), length).long()
    ids[:, ::2] = 17
    for row, prompt in enumerate(prompts):
        ids[row, length - prompt.shape[1] :] = prompt[0]
        mask[row, length - prompt.shape[1] :] = 1
    return ids, mask


@torch.no_grad()
def generate(student: Any, ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
    """The new ids."""
    found: Tensor = student.generate(
        ids, attention_mask=mask, max_new_tokens=10, eos_token_id=None, do_sample=False, **options
    )
    return found[:, ids.shape[1] :]


@pytest.mark.parametrize("pattern", ["hybrid,window,mlstm", PATTERN])
@pytest.mark.parametrize("length", [1, SINKS, WINDOW - 1, WINDOW, WINDOW + 1, 16, 33])
@torch.no_grad()
def test_greedy_generation_is_the_parallel_forward_at_every_length(
    pattern: str, length: int
) -> None:
    student, ids = make(pattern=pattern), make_ids(2, length)
    found = generate(student, ids, torch.ones_like(ids))
    for _ in range(10):
        ids = torch.cat([ids, student(ids).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(found, ids[:, length:])


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.parametrize("cuts", [range(0, 31), (0, 1, 5, 6, 7, 20, 30), (0, 12, 30)])
@torch.no_grad()
def test_a_row_in_parts_is_the_row_at_once(name: str, cuts: Any) -> None:
    """Documents begin in some of the parts, and at the beginning of one."""
    student, ids = make(name, PATTERN), make_ids(2, 30)
    marks = torch.zeros(2, 30, dtype=torch.bool)
    marks[0, [12, 17]] = marks[1, 6] = True
    whole = student(ids, is_document_start=marks).logits
    state, parts = None, []
    for first, stop in pairwise(cuts):
        output = student(
            ids[:, first:stop],
            is_document_start=marks[:, first:stop],
            state=state,
            use_cache=True,
        )
        state = output.state
        parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=3e-5)


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 4, "length_penalty": 0.5}, {"num_beams": 3, "num_return_sequences": 3}],
    ids=["greedy", "beams", "several beams"],
)
@pytest.mark.parametrize("pattern", ["hybrid,window,mlstm", PATTERN])
def test_a_padded_batch_generates_what_each_prompt_generates_alone(
    options: dict[str, Any], pattern: str
) -> None:
    student = make(pattern=pattern)
    with torch.no_grad():
        student.lm_head.weight.mul_(0.3)  # flat enough for beams to differ
    batch = generate(student, *left_padded(PROMPTS), **options)
    alone = [generate(student, ids, torch.ones_like(ids), **options) for ids in PROMPTS]
    assert torch.equal(batch, torch.cat(alone))
    assert len(set(batch.flatten().tolist())) > 4


@torch.no_grad()
def test_padding_changes_no_logit(student: Any) -> None:
    ids, mask = left_padded(PROMPTS)
    found = student(ids, attention_mask=mask).logits
    for row, prompt in enumerate(PROMPTS):
        alone = student(prompt).logits[0]
        torch.testing.assert_close(found[row, -len(alone) :], alone, rtol=0, atol=2e-5)


def test_padding_at_the_end_is_refused_where_a_state_is_made(student: Any) -> None:
    ids, mask = left_padded(PROMPTS)
    with pytest.raises(ValueError, match="Pad on the left"):
        student(ids, attention_mask=mask.flip(1), use_cache=True)
    student(ids, attention_mask=mask.flip(1))


@torch.no_grad()
def test_a_state_is_of_constant_size(student: Any) -> None:
    calls: list[tuple[int, int]] = []

    def size(part: Any) -> int:
        if isinstance(part, Tensor):
            return part.nbytes
        return sum(map(size, part)) if isinstance(part, tuple) else 0

    def watch(_: Any, __: Any, inputs: dict[str, Any], output: Any) -> None:
        calls.append((inputs["input_ids"].shape[1], size(output.state)))
        assert output.logits.shape[1] == 1  # the head is applied to the last position alone

    ids = make_ids(1, 9)
    handle = student.register_forward_hook(watch, with_kwargs=True)
    generate(student, ids, torch.ones_like(ids))
    handle.remove()
    assert [length for length, _ in calls] == [9] + [1] * 9
    assert len({num_bytes for _, num_bytes in calls}) == 1


@torch.no_grad()
def test_a_state_is_not_changed_by_going_on_from_it() -> None:
    student, ids = make(pattern=PATTERN), make_ids(2, 20)
    state = student(ids[:, :12], use_cache=True).state
    first = student(ids[:, 12:], state=state, use_cache=True).logits
    again = student(ids[:, 12:], state=state, use_cache=True).logits
    assert torch.equal(first, again)


def test_no_gradient_flows_into_a_state() -> None:
    student, ids = make(pattern=PATTERN), make_ids(1, 12)
    state = student(ids, use_cache=True).state

    def tensors(part: Any) -> list[Tensor]:
        if isinstance(part, Tensor):
            return [part]
        return [t for one in part for t in tensors(one)] if isinstance(part, tuple) else []

    assert len(tensors(state)) > 10
    assert not any(tensor.requires_grad for tensor in tensors(state))


def test_logits_are_kept_as_asked(student: Any) -> None:
    ids = make_ids(2, 8)
    with torch.no_grad():
        whole, last = student(ids).logits, student(ids, logits_to_keep=3).logits
    torch.testing.assert_close(last, whole[:, -3:], rtol=0, atol=1e-6)
    assert isinstance(student(ids, return_dict=False), tuple)
