"""JSON lines: each line an object, one of whose keys holds a document; two, if it is a prompt and
its completion."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from cache_format.metadata.spec_parts.corpus import ChatSpec, CorpusSpec
from stages.cache_teacher.corpus.formats.conversation import conversation_of
from stages.cache_teacher.corpus.formats.document_file import (
    BadDocument,
    Conversation,
    DataFile,
    Document,
    DocumentFile,
    Text,
    checked_text,
    decoded,
)
from stages.cache_teacher.corpus.formats.line_file import open_lines

_JSON_NAMES = {dict: "object", list: "array", float: "number", bool: "boolean", str: "string"}


def open_jsonl(file: DataFile, spec: CorpusSpec) -> DocumentFile[bytes]:
    """A file of JSON lines, plain or compressed."""
    parse: Callable[[bytes], Document] = (
        partial(parse_json_line, text_key=spec.text_column)
        if spec.chat is None
        else partial(parse_chat_line, chat=spec.chat)
    )
    return open_lines(file, parse, spec.documents_per_unit)


def parse_json_line(line: bytes, text_key: str) -> Text:
    """The text at ``text_key``; empty if it is null or the line is blank."""
    # As floats, integers may have any number of digits.
    record = _record_of(line, (text_key,), parse_int=float)
    if record is None:
        return ""
    return record if isinstance(record, BadDocument) else _text_of(record, text_key)


def parse_chat_line(line: bytes, chat: ChatSpec) -> Document:
    """The conversation at the keys of ``chat``; empty if they are null or the line is blank."""
    record = _record_of(line, chat.columns, parse_int=int)  # a tool's arguments stay what they are
    if record is None:
        return Conversation((), 0)
    if isinstance(record, BadDocument):
        return record
    for key in chat.columns:
        if key not in record:
            return _no_key(record, key, chat.setting_of(key))
    return conversation_of(record, chat)


def _record_of(
    line: bytes, keys: Sequence[str], parse_int: Callable[[str], Any]
) -> dict[str, Any] | BadDocument | None:
    """The object that ``line`` is, with each of ``keys`` at most once; None if it is blank."""
    if not line.strip():
        return None
    text = decoded(line, "utf-8-sig")
    if isinstance(text, BadDocument):
        return text
    try:
        record = json.loads(
            text, parse_int=parse_int, object_pairs_hook=lambda pairs: _object_of(pairs, keys)
        )
    except RecursionError:
        return BadDocument("the line is nested too deeply for JSON")
    except ValueError as error:
        return BadDocument(f"the line is not valid JSON ({error}); each line must be an object")
    if not isinstance(record, dict):
        return BadDocument(f"the line holds a JSON {_name_of(record)}, not an object")
    return record


def _object_of(pairs: list[tuple[str, Any]], keys: Sequence[str]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        for wanted in keys:
            if sum(key == wanted for key, _ in pairs) > 1:
                raise ValueError(f"the key {wanted!r} is there twice")
    return record


def _text_of(record: dict[str, Any], text_key: str) -> Text:
    if text_key not in record:
        return _no_key(record, text_key, "text_column")
    text = record[text_key]
    if text is None:
        return ""
    if not isinstance(text, str):
        return BadDocument(f"{text_key!r} is a JSON {_name_of(text)}, not text")
    return checked_text(text)


def _no_key(record: dict[str, Any], key: str, setting: str) -> BadDocument:
    keys = ", ".join(repr(name[:40]) for name in list(record)[:20]) or "none"
    return BadDocument(f"no key {key!r}; its keys: {keys}. Set {setting} to one of them")


def _name_of(value: object) -> str:
    return _JSON_NAMES.get(type(value), "null")
