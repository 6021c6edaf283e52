"""Conversations as users have them become messages, or are refused with the message named."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache_format.metadata.spec_parts.corpus import ChatSpec
from stages.cache_teacher.corpus.formats.conversation import conversation_of
from stages.cache_teacher.corpus.formats.document_file import BadDocument, Conversation
from stages.cache_teacher.corpus.formats.jsonl import parse_chat_line
from stages.cache_teacher.corpus.units import UnitDocuments
from tests.support import corpora
from tests.support.chat import said, write_chat_jsonl, write_chat_parquet

MESSAGES = ChatSpec(messages_column="messages", train_on="assistant", long_conversations="split")
PAIR = ChatSpec(
    prompt_column="prompt",
    completion_column="completion",
    train_on="assistant",
    long_conversations="split",
)


def read(value: Any) -> Conversation:
    found = conversation_of({"messages": value}, MESSAGES)
    assert isinstance(found, Conversation), found
    return found


def reason(value: Any) -> str:
    found = conversation_of({"messages": value}, MESSAGES)
    assert isinstance(found, BadDocument)
    return found.reason


class TestMessages:
    def test_roles_and_contents_are_read_with_what_else_a_message_has(self) -> None:
        call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
        messages = [
            said("system", ""),
            said("user", "1 + 1?"),
            {"role": "assistant", "content": None, "tool_calls": [call], "name": None},
            {"role": "tool", "content": "2", "tool_call_id": "x"},
            said("assistant", "2"),
        ]
        found = read(messages)
        assert found.messages[:2] == tuple(messages[:2])
        assert found.messages[2] == {"role": "assistant", "content": "", "tool_calls": [call]}
        assert found.messages[3:] == tuple(messages[3:])
        assert found.completion_start == 4

    def test_sharegpt_names_become_roles(self) -> None:
        names = {"system": "system", "human": "user", "gpt": "assistant", "observation": "tool"}
        found = read([{"from": name, "value": name} for name in names])
        assert [message["role"] for message in found.messages] == list(names.values())
        assert [message["content"] for message in found.messages] == list(names)
        assert found.completion_start == 2

    def test_parts_that_are_text_are_joined(self) -> None:
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        assert read([{"role": "user", "content": parts}]).messages == (said("user", "ab"),)

    def test_without_the_assistant_the_completion_is_empty(self) -> None:
        assert read([said("user", "a")]).completion_start == 1

    @pytest.mark.parametrize("nothing", [None, []])
    def test_null_and_no_messages_are_empty(self, nothing: Any) -> None:
        assert read(nothing).messages == ()

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("text", "'messages' is text, not a list of messages"),
            ({"role": "user"}, "'messages' is an object, not a list"),
            ({}, "'messages' is an object, not a list"),
            (
                {"role": ["user"], "content": []},
                "has lists of unlike lengths: 1 of 'role', 0 of 'content'",
            ),
            ([said("user", "a"), 3], r"messages[1] is a number, not a message"),
            ([{"content": "a"}], "messages[0] has no role; its keys: 'content'. Expected 'role'"),
            ([said("judge", "a")], "messages[0]: unknown role 'judge'; known are system,"),
            ([said("end|><|user", "a")], "messages[0]: unknown role"),
            ([{"role": 3, "content": "a"}], "messages[0]: unknown role 3"),
            ([{"from": "bard", "value": "a"}], "messages[0]: unknown from 'bard'"),
            ([{"role": "user"}], "messages[0].content is missing or null"),
            ([{"role": "user", "content": 7}], "messages[0].content is a number, not text"),
            ([{"role": "user", "value": "a"}], "messages[0].content is missing"),
            (
                [{"role": "user", "content": [{"type": "image", "url": "x"}]}],
                "messages[0].content[0] is of type 'image': only parts of type 'text' are read",
            ),
            ([{"role": "user", "content": ["a"]}], "messages[0].content[0] is text: only parts"),
            ([said("user", "\ud800")], "messages[0].content: not valid Unicode"),
            ([{**said("user", "a"), "name": {"\ud800": 1}}], "messages[0].name: not valid Unicode"),
        ],
    )
    def test_what_is_no_conversation_is_refused_by_name(self, value: Any, expected: str) -> None:
        assert expected in reason(value)


class TestPrompts:
    def test_a_prompt_and_a_completion_are_an_exchange(self) -> None:
        found = conversation_of({"prompt": "a", "completion": "b"}, PAIR)
        assert found == Conversation((said("user", "a"), said("assistant", "b")), 1)

    def test_both_may_be_messages(self) -> None:
        prompt = [said("user", "a"), said("assistant", "b"), said("user", "c")]
        completion = [said("assistant", "d"), said("tool", "e"), said("assistant", "f")]
        found = conversation_of({"prompt": prompt, "completion": completion}, PAIR)
        assert found == Conversation((*prompt, *completion), 3)

    def test_nothing_is_empty_but_half_of_it_is_refused(self) -> None:
        empty = conversation_of({"prompt": None, "completion": None}, PAIR)
        assert empty == Conversation((), 0)
        half = conversation_of({"prompt": "a", "completion": None}, PAIR)
        assert half == BadDocument("'completion' is null, though its other half is there")


CONVERSATIONS: list[Any] = [
    [said("user", f"question {n}"), said("assistant", f"{n}")] for n in range(25)
]


def conversations(path: Path, **changes: Any) -> list[UnitDocuments]:
    changes = {"messages_column": "messages"} | changes
    corpus = corpora.resolve(corpora.settings(path, **changes))
    units: list[UnitDocuments] = []
    while (unit := corpus.read_unit(len(units))) is not None:
        units.append(unit)
    return units


@pytest.fixture(autouse=True)
def _close() -> Any:
    yield
    corpora.close_all()


class TestFiles:
    @pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl"])
    def test_every_format_gives_the_same_conversations(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        if path.suffix == ".parquet":
            write_chat_parquet(path, CONVERSATIONS)
        elif path.suffix == ".arrow":
            table = pa.table({"messages": pa.array(CONVERSATIONS)})
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
                out.write_table(table, max_chunksize=7)
        else:
            write_chat_jsonl(path, [{"messages": messages} for messages in CONVERSATIONS])
        units = conversations(path)
        assert [len(unit.conversations) for unit in units] == [10, 10, 5]
        found = [conversation.messages for unit in units for conversation in unit.conversations]
        assert found == [tuple(messages) for messages in CONVERSATIONS]
        assert [unit.texts for unit in units] == [[], [], []]

    def test_keys_that_other_messages_have_are_no_part_of_one(self, tmp_path: Path) -> None:
        """Arrow gives every struct all fields, the others as null."""
        messages = [{**said("user", "a"), "name": "Bo"}, said("assistant", "b")]
        (unit,) = conversations(write_chat_parquet(tmp_path / "a.parquet", [messages]))
        assert unit.conversations[0].messages == tuple(messages)

    def test_a_struct_of_lists_is_a_list_of_messages(self, tmp_path: Path) -> None:
        """As datasets stores a Sequence of objects."""
        column = pa.array([{"role": ["user", "assistant"], "content": ["a", "b"]}])
        pq.write_table(pa.table({"messages": column}), tmp_path / "a.parquet")
        (unit,) = conversations(tmp_path / "a.parquet")
        assert unit.conversations[0].messages == (said("user", "a"), said("assistant", "b"))

    def test_a_wrong_message_is_named_with_file_and_row(self, tmp_path: Path) -> None:
        table = [*CONVERSATIONS[:3], [said("judge", "a")]]
        path = write_chat_parquet(tmp_path / "a.parquet", table)
        with pytest.raises(
            ValueError, match=r"a\.parquet, document 3: messages\[0\]: unknown role"
        ):
            conversations(path)
        (unit,) = conversations(path, on_bad_document="skip")
        assert (len(unit.conversations), unit.num_skipped) == (3, 1)

    def test_a_line_without_the_key_is_named(self, tmp_path: Path) -> None:
        path = write_chat_jsonl(tmp_path / "a.jsonl", [{"messages": []}, {"chat": []}])
        with pytest.raises(
            ValueError, match=r"a\.jsonl, line 2: no key 'messages'.*Set messages_column to one"
        ):
            conversations(path)

    def test_integers_of_a_tool_stay_integers(self) -> None:
        line = b'{"messages": [{"role": "assistant", "tool_calls": [{"a": 1}]}]}'
        found = parse_chat_line(line, MESSAGES)
        assert isinstance(found, Conversation)
        assert repr(found.messages[0]["tool_calls"]) == "[{'a': 1}]"

    def test_blank_lines_and_nulls_are_skipped(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text('\n{"messages": null}\n{"messages": [{"from": "gpt", "value": "a"}]}\n')
        (unit,) = conversations(path)
        assert (len(unit.conversations), unit.num_skipped) == (1, 2)

    @pytest.mark.parametrize(
        ("column", "expected"),
        [
            (pa.array(["a"]), r"column 'messages' holds string, not lists of messages"),
            (pa.array([["a"]]), r"holds list<.*string>, not lists of messages"),
        ],
    )
    def test_a_column_of_another_type_is_refused(
        self, tmp_path: Path, column: pa.Array, expected: str
    ) -> None:
        pq.write_table(pa.table({"messages": column}), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=expected):
            conversations(tmp_path / "a.parquet")

    def test_a_missing_column_is_refused_by_its_setting(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=r"no column 'completion'.*Set completion_column to"):
            conversations(
                tmp_path / "a.parquet",
                messages_column=None,
                prompt_column="prompt",
                completion_column="completion",
            )

    def test_files_that_hold_no_lists_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("messages\n[]\n")
        with pytest.raises(ValueError, match=r"a\.csv: CSV holds no conversations.*Convert it"):
            conversations(tmp_path / "a.csv")

    def test_two_columns_of_texts_are_read(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"q": ["a"], "a": ["b"]}), tmp_path / "a.parquet")
        (unit,) = conversations(
            tmp_path / "a.parquet", messages_column=None, prompt_column="q", completion_column="a"
        )
        assert unit.conversations == [Conversation((said("user", "a"), said("assistant", "b")), 1)]
