"""Long conversations are split before messages of the user, and nowhere else."""

import pytest

from stages.cache_teacher.corpus.chat.parts import parts_of
from stages.cache_teacher.corpus.formats.document_file import Conversation
from tests.support.chat import said


def conversation(roles: str, completion_start: int | None = None) -> Conversation:
    """A message for each letter: s(ystem), u(ser), a(ssistant) or t(ool); its number is said."""
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    messages = tuple(said(names[role], str(number)) for number, role in enumerate(roles))
    start = len(roles) - 1 if completion_start is None else completion_start
    return Conversation(messages, start)


def split(given: Conversation, most: int) -> tuple[list[str], int]:
    """The contents of each part, none of more than ``most`` messages."""
    parts, num_left_out = parts_of(given, lambda part: part if len(part.messages) <= most else None)
    return ["".join(m["content"] for m in part.messages) for part in parts], num_left_out


@pytest.mark.parametrize(
    ("roles", "most", "parts", "num_left_out"),
    [
        ("uauaua", 4, ["0123", "45"], 0),
        ("uauaua", 3, ["01", "23", "45"], 0),
        ("suauaua", 5, ["01234", "056"], 0),
        ("ssuaua", 4, ["0123", "0145"], 0),
        ("suatatua", 4, ["067"], 1),  # the exchange with tools is longer than a part may be
        ("uatatua", 5, ["01234", "56"], 0),
        ("auaua", 3, ["012", "34"], 0),
        ("uuauua", 4, ["012", "345"], 0),  # what a user says in two messages stays together
        ("ua", 1, [], 1),
        ("s", 0, [], 0),
    ],
)
def test_parts_are_runs_of_exchanges(
    roles: str, most: int, parts: list[str], num_left_out: int
) -> None:
    assert split(conversation(roles), most) == (parts, num_left_out)


def test_the_completion_is_that_of_the_whole() -> None:
    parts, _ = parts_of(
        conversation("suauaua"), lambda part: part if len(part.messages) <= 3 else None
    )
    assert [part.completion_start for part in parts] == [3, 3, 2]
    early, _ = parts_of(
        conversation("uaua", completion_start=1),
        lambda part: part if len(part.messages) <= 2 else None,
    )
    assert [part.completion_start for part in early] == [1, 0]
