"""Text generation as Hugging Face does it: padding, beams, sampling, and what a token costs."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.noisy_students import EOS, make_ids, make_noisy_student

PROMPTS = [make_ids(1, 9), make_ids(1, 4) + 1, make_ids(1, 6) + 2]
SAMPLING = {
    "do_sample": True,
    "temperature": 1.3,
    "top_k": 20,
    "top_p": 0.9,
    "repetition_penalty": 1.2,
}
BEAMS = {"num_beams": 4, "do_sample": False, "length_penalty": 0.5}


@pytest.fixture(scope="module")
def student() -> Any:
    found = make_noisy_student(torch.float32)
    with torch.no_grad():
        found.lm_head.weight.mul_(0.3)  # flat enough for beams and samples to differ
    return found


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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        found: Tensor = student.generate(
            ids, attention_mask=mask, max_new_tokens=10, eos_token_id=None, **options
        )
    return found[:, ids.shape[1] :]


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": False, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1},
        BEAMS,
        BEAMS | {"num_return_sequences": 3},
    ],
    ids=["greedy", "greedy with parameters", "beams", "several beams"],
)
def test_a_padded_batch_generates_what_each_prompt_generates_alone(
    student: Any, options: dict[str, Any]
) -> None:
    batch = generate(student, *left_padded(PROMPTS), **options)
    alone = [generate(student, ids, torch.ones_like(ids), **options) for ids in PROMPTS]
    assert torch.equal(batch, torch.cat(alone))
    assert len(set(batch.flatten().tolist())) > 4


@pytest.mark.parametrize(
    "options",
    [
        SAMPLING,
        SAMPLING | {"num_return_sequences": 3},
        {"do_sample": True, "num_beams": 3, "num_return_sequences": 2},
    ],
    ids=["sampling", "several samples", "sampled beams"],
)
def test_sampling_of_a_padded_batch_does_not_depend_on_the_state(
    student: Any, options: dict[str, Any]
) -> None:
    """With the state, as rereading everything for each token."""
    runs = [
        generate(student, *left_padded(PROMPTS), use_cache=use_cache, **options)
        for use_cache in (True, False)
    ]
    assert torch.equal(*runs)
    num = options.get("num_return_sequences", 1)
    assert len(runs[0]) == 3 * num
    if num > 1:
        assert not torch.equal(runs[0][0], runs[0][1])


def test_a_prompt_is_one_forward_and_each_token_costs_the_same(student: Any) -> None:
    calls: list[tuple[int, int]] = []

    def watch(_: Any, __: Any, inputs: dict[str, Any], output: Any) -> None:
        parts = [part for layer in output.state for part in (layer.conv_BKD, *layer.cell)]
        calls.append((inputs["input_ids"].shape[1], sum(part.nbytes for part in parts)))
        assert output.logits.shape[1] == 1  # the head is applied to the last position alone

    ids = make_ids(1, 9)
    handle = student.register_forward_hook(watch, with_kwargs=True)
    generate(student, ids, torch.ones_like(ids), do_sample=False)
    handle.remove()
    assert [length for length, _ in calls] == [9] + [1] * 9
    assert len({num_bytes for _, num_bytes in calls}) == 1


def test_generation_continues_from_a_state(student: Any) -> None:
    """A long text may be read in parts, and generated from."""
    ids = make_ids(1, 12)
    with torch.no_grad():
        state = student(ids[:, :8], use_cache=True).state
    rest = ids[:, 8:]
    found = generate(student, rest, torch.ones_like(rest), state=state, do_sample=False)
    assert torch.equal(found, generate(student, ids, torch.ones_like(ids), do_sample=False))


@torch.no_grad()
def test_an_attention_mask_may_cover_positions_before_the_state(student: Any) -> None:
    ids, mask = left_padded(PROMPTS)
    whole = student(ids, attention_mask=mask).logits
    state = None
    for first, stop in ((0, 6), (6, 8), (8, 9)):
        seen = mask[:, :stop]
        output = student(ids[:, first:stop], attention_mask=seen, state=state, use_cache=True)
        state = output.state
        for row in range(len(PROMPTS)):
            is_token = mask[row, first:stop].bool()
            torch.testing.assert_close(
                output.logits[row, is_token], whole[row, first:stop][is_token], rtol=0, atol=1e-4
            )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_generation_equals_the_parallel_forward(
    tmp_path: Any, dtype: torch.dtype
) -> None:
    """Gates, sums and states stay in float32, so going on token by token adds no error."""
    from stages.train_student.modeling.distil_xlstm.modeling import DistilXLSTMForCausalLM

    exact = make_noisy_student(torch.float32)
    exact.save_pretrained(tmp_path)
    half: Any = DistilXLSTMForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    ids = make_ids(2, 40)
    expected, whole, state, stepwise = exact(ids).logits, half(ids).logits, None, []
    for position in range(40):
        output = half(ids[:, position : position + 1], state=state, use_cache=True)
        state = output.state
        stepwise.append(output.logits)
    assert {part.dtype for layer in state or () for part in layer.cell} == {torch.float32}
    unit = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11
    scale = float(expected.norm())
    assert float((whole - expected).norm()) < 8 * unit * scale
    assert float((torch.cat(stepwise, 1) - whole).norm()) < 4 * unit * scale
