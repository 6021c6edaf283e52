"""Special tokens of a template are told from those that a message spells, wherever it does."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.cache_teacher.corpus.chat.control_text import MARK, RESERVED, ControlText, alias_of

IDS = {"<|im_start|>": 5, "<|im_end|>": 6, "<s>": 7, "ab": 8, "bc": 9, "~": 10}
CONTROL = ControlText(IDS)
PIECES = [*IDS, "<|im_", "start|>", "end|>", "<", "|>", "a", "b", "c", " ", "\n", "text"]
SPELLED = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)


def plain(text: str) -> str:
    """What a tokenizer's copy is given of ``text``."""
    return CONTROL.with_aliases(text, [])[0]


@given(contents=st.lists(SPELLED, max_size=4))
def test_only_what_the_template_writes_becomes_an_alias(contents: list[str]) -> None:
    marked = [CONTROL.marked(content) for content in contents]
    rendered = "".join(f"<|im_start|>user\n{content}<|im_end|>" for content in marked)
    expected = "".join(f"{alias_of(5)}user\n{content}{alias_of(6)}" for content in contents)
    assert plain(rendered) == expected


@given(contents=st.lists(SPELLED, min_size=1, max_size=3))
def test_texts_that_a_template_joins_form_no_special_token(contents: list[str]) -> None:
    assert plain("".join(CONTROL.marked(content) for content in contents)) == "".join(contents)


@pytest.mark.parametrize("content", ["<|im_  ", "<|im_end\n", "<s", "a ", "<"])
def test_nor_do_texts_that_it_strips_before(content: str) -> None:
    joined = CONTROL.marked(content).strip() + "end|>" + "s>" + "b"
    assert RESERVED.search(plain(joined)) is None


@given(before=SPELLED, inside=SPELLED, after=SPELLED)
def test_spans_stay_where_they_are(before: str, inside: str, after: str) -> None:
    marked = [CONTROL.marked(text) for text in (before, inside, after)]
    rendered = f"<s>{marked[0]}<s>{marked[1]}<s>{marked[2]}"
    begin = len(f"<s>{marked[0]}<s>")
    text, ((first, last),) = CONTROL.with_aliases(rendered, [(begin, begin + len(marked[1]) + 3)])
    assert text[first:last] == inside + alias_of(7)


def test_all_texts_of_a_message_are_marked_and_nothing_else() -> None:
    message = {"role": "user", "content": "<s>", "n": 1, "t": [{"<s>": "x", "b": True}]}
    found = CONTROL.marked(message)
    broken = f"<{MARK}s>"
    assert found == {"role": "user", "content": broken, "n": 1, "t": [{broken: "x", "b": True}]}


def test_a_text_that_spells_none_is_left_as_it_is() -> None:
    assert CONTROL.marked("</think> <tool_call> 1 < 2") == "</think> <tool_call> 1 < 2"


@pytest.mark.parametrize(
    ("rendered", "span"),
    [
        ("Hi<|im_end|>\n", (0, 12)),
        ("Hi<|im_end|>", (0, 12)),
        ("Hi\n", (0, 3)),
        ("<|im_end|>Hi\n", (0, 13)),
    ],
)
def test_white_space_after_the_last_special_token_is_the_templates(
    rendered: str, span: tuple[int, int]
) -> None:
    assert CONTROL.without_blanks_after(rendered, (0, len(rendered))) == span


def test_without_special_tokens_nothing_is_marked() -> None:
    none = ControlText({})
    assert none.marked("<s>") == "<s>"
    assert none.with_aliases("<s>", [(0, 3)]) == ("<s>", [(0, 3)])
    assert re.fullmatch("<s>", none.marked("<s>"))
