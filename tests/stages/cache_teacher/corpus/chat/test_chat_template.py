"""Templates render conversations, and tell what the assistant says; or are refused."""

from types import SimpleNamespace
from typing import Any

import pytest

from stages.cache_teacher.corpus.chat.chat_template import (
    ChatTemplate,
    RefusedByTemplateError,
    SpansUnknownError,
    template_of,
    template_sha256,
)
from stages.cache_teacher.corpus.chat.control_text import ControlText
from tests.support.chat import CHATML, MARKED_CHATML, Messages, said

CONTROL = ControlText({"<|im_start|>": 1, "<|im_end|>": 2})
MESSAGES = [
    said("system", "Be brief."),
    said("user", "a"),
    said("assistant", "b"),
    said("tool", "c"),
    said("assistant", ""),
    said("user", "d"),
    said("assistant", " e\n"),
]
SAID = ["b<|im_end|>", "<|im_end|>", " e\n<|im_end|>"]


def tokenizer_with(template: Any, **special_tokens: str) -> Any:
    return SimpleNamespace(chat_template=template, special_tokens_map=special_tokens)


def template(text: Any, **special_tokens: str) -> ChatTemplate:
    return ChatTemplate(tokenizer_with(text, **special_tokens), CONTROL)


def texts(made: ChatTemplate, messages: Messages, chosen: list[int]) -> list[str]:
    rendered, spans = made.render_with_spans(messages, chosen)
    assert rendered == made.render(messages)
    return [rendered[begin:end] for begin, end in spans]


@pytest.mark.parametrize("text", [CHATML, MARKED_CHATML])
def test_spans_are_what_the_assistant_says_up_to_its_end(text: str) -> None:
    assert texts(template(text), MESSAGES, [2, 4, 6]) == SAID


@pytest.mark.parametrize("text", [CHATML, MARKED_CHATML])
def test_some_of_its_messages_may_be_chosen(text: str) -> None:
    assert texts(template(text), MESSAGES, [6]) == SAID[2:]
    assert texts(template(text), MESSAGES, []) == []


@pytest.mark.parametrize(
    "text",
    [
        CHATML,
        MARKED_CHATML,
        "{% if messages[0].role != 'system' %}<|im_start|>system\nHi<|im_end|>\n{% endif %}"
        + CHATML,  # as SmolLM2's
    ],
)
def test_an_answer_may_be_the_first_message(text: str) -> None:
    messages = [said("assistant", "x<|im_start|>assistant\n"), *MESSAGES[1:3]]
    marked = [message | {"content": CONTROL.marked(message["content"])} for message in messages]
    first, second = texts(template(text), marked, [0, 2])
    assert first == marked[0]["content"] + "<|im_end|>"
    assert second == SAID[0]


def test_without_a_prompt_to_answer_the_role_is_part_of_what_is_said() -> None:
    made = template("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}")
    assert texts(made, MESSAGES[:3], [2]) == ["[assistant]b"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Only the last answer keeps its thoughts, as Qwen3's and DeepSeek's do.
        (
            CHATML.replace(
                "message['content'] +",
                "('' if loop.last or message['role'] == 'user' else '!') + message['content'] +",
            ),
            r"up to message 1 .*differently.*Put {% generation %}.*or set train_on = \"all\"",
        ),
        # The prompt to answer is more than the beginning of an answer.
        (CHATML.replace("assistant\n'", "assistant\n<think>'"), r"before message 1 .*'<think>'"),
    ],
)
def test_a_beginning_that_is_not_the_wholes_is_refused(text: str, expected: str) -> None:
    messages = [*MESSAGES[1:3], *MESSAGES[1:3]]
    with pytest.raises(SpansUnknownError, match=expected):
        template(text).render_with_spans(messages, [1, 3])


def test_marks_that_are_not_one_for_each_message_do_not_tell_the_last() -> None:
    twice = "{% for m in messages %}" + 2 * "{% generation %}a{% endgeneration %}" + "{% endfor %}"
    made = template(twice)
    assert len(made.render_with_spans([said("assistant", "")], [0])[1]) == 2
    with pytest.raises(SpansUnknownError, match=r'marks 4 texts .* 2 messages .*"assistant"'):
        made.render_with_spans(2 * [said("assistant", "")], [1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[7].content }}", "does not render it"),
        ("{{ messages[0].content + 1 }}", "does not render it"),
        ("{{ messages.__class__.__mro__ }}", "does not render it"),  # Jinja's sandbox
    ],
)
def test_what_a_template_does_not_render_is_the_conversations_fault(
    text: str, expected: str
) -> None:
    with pytest.raises(RefusedByTemplateError, match=expected):
        template(text).render(MESSAGES)


def test_a_template_that_is_no_jinja_is_an_error_of_its_own() -> None:
    with pytest.raises(ValueError, match=r"not valid Jinja, line 1: .*Put the template back"):
        template("{% for %}").render(MESSAGES)


def test_special_tokens_are_known_to_a_template() -> None:
    assert template("{{ bos_token }}{{ messages[0].role }}", bos_token="<s>").render(MESSAGES) == (
        "<s>system"
    )


def test_the_date_is_the_same_every_day() -> None:
    asks = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}"
    assert template(asks).render(MESSAGES) == "26 Jul 2024"
    inside = "{% for m in messages %}{{ strftime_now('%Y-%m-%d') }} {% endfor %}"
    assert template(inside).render(MESSAGES[:2]) == "2024-07-26 2024-07-26 "


def test_of_several_templates_the_default_is_taken() -> None:
    assert template_of(tokenizer_with({"tool_use": "a", "default": "b"})) == "b"


@pytest.mark.parametrize("nothing", [None, "", {"rag": "a"}])
def test_a_tokenizer_without_a_template_is_refused(nothing: Any) -> None:
    with pytest.raises(ValueError, match=r"no chat template.*chat_template\.jinja"):
        template(nothing)


def test_the_hash_is_the_texts() -> None:
    assert template_sha256("a") != template_sha256("b")
    assert len(template_sha256("ü")) == 64
