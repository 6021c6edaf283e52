"""Prompts with a needle: exact lengths, depths, one naming of the number, the same everywhere."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.students.needles.prompts import NUM_ANSWERS, make_prompt
from stages.model_files.tokenizer_files import load_tokenizer
from tests.support.tiny import save_tiny_tokenizer

LENGTHS = (100, 101, 137, 400)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("tokenizer")
    save_tiny_tokenizer(directory)
    return load_tokenizer(directory)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("length", LENGTHS)
def test_a_prompt_has_exactly_its_length_and_names_the_number_once(
    tokenizer: Any, length: int, depth: float
) -> None:
    for trial in range(3):
        prompt = make_prompt(tokenizer, length, depth, trial)
        text = tokenizer.decode(prompt.input_ids)
        assert len(prompt.input_ids) == length
        assert text.count(prompt.number) == 1
        question = text[text.rindex(" The magic number") :]
        assert question.endswith(" is")
        assert f"{question} {prompt.number}." in text
        assert len(text.split("magic")) == 3


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_needle_lies_where_it_is_asked_to(tokenizer: Any, depth: float) -> None:
    prompt = make_prompt(tokenizer, 3000, depth, 1)
    text = tokenizer.decode(prompt.input_ids)
    before, after = text.split(f"{prompt.number}.")
    haystack_before, haystack_after = (part.rindex(" The magic") for part in (before, after))
    share = haystack_before / (haystack_before + haystack_after)
    assert abs(share - depth) < 0.03
    # Between sentences, unless there is none before it.
    assert haystack_before == 0 or text[haystack_before - 1] == "."


def test_prompts_depend_on_the_trial_alone(tokenizer: Any) -> None:
    one, again, other = (make_prompt(tokenizer, 300, 0.5, trial) for trial in (0, 0, 1))
    assert one == again
    assert one.number != other.number
    longer = make_prompt(tokenizer, 400, 0.0, 0)
    assert longer.answers == one.answers
    # The question follows the same sentences, however long the prompt is.
    shorter = make_prompt(tokenizer, 200, 0.0, 0)
    assert longer.input_ids[-60:] == shorter.input_ids[-60:]


def test_answers_continue_the_question_as_the_needle_does(tokenizer: Any) -> None:
    prompt = make_prompt(tokenizer, 150, 1.0, 2)
    texts = [tokenizer.decode(ids) for ids in prompt.answers]
    assert len(set(texts)) == NUM_ANSWERS
    assert texts[0] == f" {prompt.number}"
    assert all(len(text) == 6 and text[1:].isdecimal() for text in texts)
    ids = prompt.answers[0]
    assert any(prompt.input_ids[i : i + len(ids)] == ids for i in range(len(prompt.input_ids)))


def test_what_a_tokenizer_puts_before_a_text_comes_first(tokenizer: Any, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer.save_pretrained(tmp_path)
    other = load_tokenizer(tmp_path)
    other.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", other.eos_token_id)]
    )
    prompt, plain = (make_prompt(one, 120, 0.0, 0) for one in (other, tokenizer))
    assert len(prompt.input_ids) == 120
    assert prompt.input_ids[0] == other.eos_token_id
    assert other.eos_token_id not in (*prompt.input_ids[1:], *plain.input_ids)


def test_a_prompt_without_room_for_a_haystack_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="has no room for a haystack: needle and question take"):
        make_prompt(tokenizer, 20, 0.5, 0)
