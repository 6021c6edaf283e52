"""A record's columns become a conversation: messages of known roles, each with its text.

In: the values that a file holds of one document, as Python has them. Out: a ``Conversation``, empty
where there is none, or a ``BadDocument`` that says which message is wrong. Read are OpenAI's form
(``role``, ``content``), ShareGPT's (``from``, ``value``), and prompts with completions, each a text
or a list of messages.
"""

from collections.abc import Mapping
from typing import Any

from cache_format.metadata.spec_parts.corpus import ChatSpec
from stages.cache_teacher.corpus.formats.document_file import (
    BadDocument,
    Conversation,
    checked_text,
)

Message = Mapping[str, Any]

ASSISTANT, USER = "assistant", "user"
LEADING_ROLES = ("system", "developer")
"""Of messages that hold for the whole conversation."""
_ROLES = {
    **{role: role for role in (*LEADING_ROLES, USER, ASSISTANT, "tool", "function")},
    # ShareGPT's names for them.
    "human": USER,
    "gpt": ASSISTANT,
    "observation": "tool",
}
_WITHOUT_CONTENT = ("tool_calls", "function_call")
_KINDS = {
    dict: "an object",
    list: "a list",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "text",
    type(None): "null",
}


class _NoConversationError(Exception):
    """The message is the reason."""


def conversation_of(record: Mapping[str, Any], chat: ChatSpec) -> Conversation | BadDocument:
    """The conversation in ``record``, which has the columns of ``chat``; empty if they are null."""
    try:
        if chat.messages_column is not None:
            messages = _messages(record[chat.messages_column], chat.messages_column)
            return Conversation(messages, _last_of_assistant(messages))
        assert chat.prompt_column is not None
        assert chat.completion_column is not None
        if record[chat.prompt_column] is None and record[chat.completion_column] is None:
            return Conversation((), 0)
        prompt = _text_or_messages(record, chat.prompt_column, USER)
        completion = _text_or_messages(record, chat.completion_column, ASSISTANT)
        return Conversation((*prompt, *completion), len(prompt))
    except _NoConversationError as error:
        return BadDocument(str(error))
    except RecursionError:
        return BadDocument("a message is nested too deeply")


def _last_of_assistant(messages: tuple[Message, ...]) -> int:
    """Number of the assistant's last message; one after the last where there is none."""
    numbers = [n for n, message in enumerate(messages) if message["role"] == ASSISTANT]
    return numbers[-1] if numbers else len(messages)


def _text_or_messages(record: Mapping[str, Any], column: str, role: str) -> tuple[Message, ...]:
    value = record[column]
    if isinstance(value, str):
        return ({"role": role, "content": _checked(value, column)},)
    if value is None:
        raise _NoConversationError(f"{column!r} is null, though its other half is there")
    return _messages(value, column)


def _messages(value: Any, column: str) -> tuple[Message, ...]:
    if value is None:
        return ()
    if isinstance(value, dict):  # as datasets stores a Sequence of them
        value = _one_by_one(value, column)
    if not isinstance(value, list):
        raise _NoConversationError(f"{column!r} is {_kind(value)}, not a list of messages")
    return tuple(_message(item, f"{column}[{number}]") for number, item in enumerate(value))


def _one_by_one(columns: Mapping[str, Any], column: str) -> list[dict[str, Any]]:
    """Messages of which each key has a list of its own."""
    lists = {key: values for key, values in columns.items() if values is not None}
    if not lists or not all(isinstance(values, list) for values in lists.values()):
        raise _NoConversationError(f"{column!r} is an object, not a list of messages")
    if len({len(values) for values in lists.values()}) > 1:
        sizes = ", ".join(f"{len(values)} of {key!r}" for key, values in lists.items())
        raise _NoConversationError(f"{column!r} has lists of unlike lengths: {sizes}")
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, dict):
        raise _NoConversationError(f"{where} is {_kind(item)}, not a message")
    # A column of objects has all keys of all of them: those that an object lacks are null.
    fields = {key: _without_nulls(value) for key, value in item.items() if value is not None}
    role_key, content_key = ("role", "content") if "role" in fields else ("from", "value")
    if role_key not in fields:
        keys = ", ".join(map(repr, list(fields)[:20])) or "none"
        raise _NoConversationError(
            f"{where} has no role; its keys: {keys}. Expected 'role' and 'content', or 'from' and "
            "'value'"
        )
    role = fields.pop(role_key)
    if not isinstance(role, str) or role not in _ROLES:
        known = ", ".join(_ROLES)
        raise _NoConversationError(f"{where}: unknown {role_key} {role!r:.60}; known are {known}")
    content = _content(fields.pop(content_key, None), f"{where}.{content_key}", fields)
    _check_texts(fields, where)
    return {"role": _ROLES[role], "content": content, **fields}


def _content(value: Any, where: str, fields: Mapping[str, Any]) -> str:
    """The text of a message; that of all its parts, if it has parts."""
    if value is None:
        if any(fields.get(key) for key in _WITHOUT_CONTENT):
            return ""
        raise _NoConversationError(f"{where} is missing or null")
    if isinstance(value, list):
        return "".join(_part(part, f"{where}[{number}]") for number, part in enumerate(value))
    if not isinstance(value, str):
        raise _NoConversationError(f"{where} is {_kind(value)}, not text")
    return _checked(value, where)


def _part(part: Any, where: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return _checked(part["text"], where)
    kind = f"of type {part.get('type')!r:.60}" if isinstance(part, dict) else _kind(part)
    raise _NoConversationError(f"{where} is {kind}: only parts of type 'text' are read")


def _check_texts(value: Any, where: str) -> None:
    """Raise for a text, however deep, that is not Unicode."""
    if isinstance(value, str):
        _checked(value, where)
    elif isinstance(value, dict):
        for key, inner in value.items():
            _checked(key, where)
            _check_texts(inner, f"{where}.{key}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _check_texts(inner, f"{where}[{number}]")


def _checked(text: str, where: str) -> str:
    checked = checked_text(text)
    if isinstance(checked, BadDocument):
        raise _NoConversationError(f"{where}: {checked.reason}")
    return checked


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), type(value).__name__)
