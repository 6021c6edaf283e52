"""The settings of conversations, and what of them a cache's spec holds."""

from dataclasses import replace
from typing import Any

import pytest

from cache_format.metadata.receipt import ConversationCounts
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.corpus import ChatSpec
from stages.cache_teacher.config import CacheTeacherConfig
from tests.support.sample_cache import sample_spec

CHAT = ChatSpec(messages_column="messages", train_on="all", long_conversations="drop")


def chat_spec() -> CacheSpec:
    plain = sample_spec()
    return replace(
        plain,
        teacher=replace(plain.teacher, chat_template_sha256="a" * 64),
        corpus=replace(plain.sole_corpus, chat=CHAT),
    )


@pytest.mark.parametrize(
    ("changes", "columns"),
    [
        ({"messages_column": "chat"}, ("chat",)),
        ({"prompt_column": "q", "completion_column": "a"}, ("q", "a")),
    ],
)
def test_columns_make_documents_conversations(
    changes: dict[str, Any], columns: tuple[str, ...]
) -> None:
    chat = CacheTeacherConfig(**changes, train_on="completion").chat
    assert chat is not None
    assert chat.columns == columns
    assert (chat.train_on, chat.long_conversations) == ("completion", "split")


def test_without_them_documents_are_text() -> None:
    assert CacheTeacherConfig(train_on="all").chat is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prompt_column": "q"}, "completion_column: must be set, too"),
        ({"completion_column": "a"}, "prompt_column: must be set, too"),
        (
            {"messages_column": "m", "prompt_column": "q", "completion_column": "a"},
            "messages_column: must be none where prompt_column and completion_column are set",
        ),
    ],
)
def test_columns_that_contradict_each_other_are_refused(
    changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        CacheTeacherConfig(**changes)


def test_a_spec_of_conversations_is_read_back() -> None:
    spec = chat_spec()
    assert CacheSpec.from_json(spec.to_json()) == spec
    assert spec.to_json()["corpus"]["chat"] == {
        "messages_column": "messages",
        "train_on": "all",
        "long_conversations": "drop",
    }
    assert spec.cache_id != sample_spec().cache_id


@pytest.mark.parametrize(
    ("part", "changes", "expected"),
    [
        ("chat", {"train_on": "user"}, "corpus.chat.train_on"),
        ("chat", {"long_conversations": "cut"}, "corpus.chat.long_conversations"),
        ("chat", {"prompt_column": "q"}, "messages_column: must be a column, or left out"),
        ("chat", {"tools": "t"}, "corpus.chat.tools: not a known field"),
        ("teacher", {"chat_template_sha256": "a"}, "chat_template_sha256: must be 64 hex digits"),
    ],
)
def test_a_spec_that_says_something_else_is_refused(
    part: str, changes: dict[str, str], expected: str
) -> None:
    fields = chat_spec().to_json()
    (fields["teacher"] if part == "teacher" else fields["corpus"]["chat"]).update(changes)
    with pytest.raises(ValueError, match=expected):
        CacheSpec.from_json(fields)


def test_a_template_belongs_to_conversations_and_to_nothing_else() -> None:
    spec = chat_spec()
    for fields in (
        {"corpus": replace(spec.sole_corpus, chat=None)},
        {"teacher": replace(spec.teacher, chat_template_sha256=None)},
    ):
        with pytest.raises(ValueError, match=r"there if and only if there is corpus\.chat"):
            replace(spec, **fields)


def test_counts_add_up_and_are_never_negative() -> None:
    one = ConversationCounts(num_split=2, num_unscored=1)
    assert one + ConversationCounts(num_split=1, num_too_long=4) == ConversationCounts(
        num_split=3, num_too_long=4, num_unscored=1
    )
    with pytest.raises(ValueError, match="num_split: must not be negative, found -1"):
        ConversationCounts(num_split=-1)
