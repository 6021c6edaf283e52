"""A conversation that is too long for a row, in parts that are conversations themselves.

A part begins with a message of the user and ends before another, and each has the messages that
hold for all of it, such as the system prompt. So nothing is cut, and every part is rendered as the
teacher was trained to read it, though without what was said before.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from stages.cache_teacher.corpus.formats.conversation import LEADING_ROLES, USER
from stages.cache_teacher.corpus.formats.document_file import Conversation

_Encoded = TypeVar("_Encoded")


def parts_of(
    conversation: Conversation, encode: Callable[[Conversation], _Encoded | None]
) -> tuple[list[_Encoded], int]:
    """The parts, each as long as ``encode`` allows, and how many exchanges were left out.

    ``encode`` returns None for one that is too long. An exchange is left out that is too long by
    itself.
    """
    begins = _exchanges(conversation)
    parts: list[_Encoded] = []
    num_left_out = first = 0
    while first < len(begins) - 1:
        longest: _Encoded | None = None
        end = first
        while end < len(begins) - 1:
            encoded = encode(_part(conversation, begins[0], begins[first], begins[end + 1]))
            if encoded is None:
                break
            longest, end = encoded, end + 1
        if longest is None:
            num_left_out, end = num_left_out + 1, first + 1
        else:
            parts.append(longest)
        first = end
    return parts, num_left_out


def _exchanges(conversation: Conversation) -> Sequence[int]:
    """The numbers of the messages at which exchanges begin, and of the one after the last."""
    roles = [message["role"] for message in conversation.messages]
    num_leading = next((n for n, role in enumerate(roles) if role not in LEADING_ROLES), len(roles))
    begins = [
        number
        for number in range(num_leading, len(roles))
        if number == num_leading or (roles[number] == USER and roles[number - 1] != USER)
    ]
    return [*begins, len(roles)]


def _part(conversation: Conversation, num_leading: int, begin: int, end: int) -> Conversation:
    """The leading messages, and those from ``begin`` to ``end``."""
    leading = conversation.messages[:num_leading]
    completion = min(max(conversation.completion_start, begin), end)
    return replace(
        conversation,
        messages=(*leading, *conversation.messages[begin:end]),
        completion_start=num_leading + completion - begin,
    )
