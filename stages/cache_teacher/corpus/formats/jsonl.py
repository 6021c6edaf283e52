"""JSON lines: each line an object, one of whose keys holds a document."""

import json
from functools import partial
from typing import Any

from cache_format.metadata.spec_parts.corpus import CorpusSpec
from stages.cache_teacher.corpus.formats.document_file import (
    BadDocument,
    DataFile,
    Document,
    DocumentFile,
    checked_text,
    decoded,
)
from stages.cache_teacher.corpus.formats.line_file import open_lines

_JSON_NAMES = {dict: "object", list: "array", float: "number", bool: "boolean", str: "string"}


def open_jsonl(file: DataFile, spec: CorpusSpec) -> DocumentFile[bytes]:
    """A file of JSON lines, plain or compressed."""
    parse = partial(parse_json_line, text_key=spec.text_column)
    return open_lines(file, parse, spec.documents_per_unit)


def parse_json_line(line: bytes, text_key: str) -> Document:
    """The text at ``text_key``; empty if it is null or the line is blank."""
    if not line.strip():
        return ""
    text = decoded(line, "utf-8-sig")
    if isinstance(text, BadDocument):
        return text
    try:
        # As floats, integers may have any number of digits.
        record = json.loads(
            text, parse_int=float, object_pairs_hook=lambda pairs: _object_of(pairs, text_key)
        )
    except RecursionError:
        return BadDocument("the line is nested too deeply for JSON")
    except ValueError as error:
        return BadDocument(f"the line is not valid JSON ({error}); each line must be an object")
    if not isinstance(record, dict):
        return BadDocument(f"the line holds a JSON {_name_of(record)}, not an object")
    return _text_of(record, text_key)


def _object_of(pairs: list[tuple[str, Any]], text_key: str) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs) and sum(key == text_key for key, _ in pairs) > 1:
        raise ValueError(f"the key {text_key!r} is there twice")
    return record


def _text_of(record: dict[str, Any], text_key: str) -> Document:
    if text_key not in record:
        keys = ", ".join(repr(key[:40]) for key in list(record)[:20]) or "none"
        return BadDocument(f"no key {text_key!r}; its keys: {keys}. Set text_column to one of them")
    text = record[text_key]
    if text is None:
        return ""
    if not isinstance(text, str):
        return BadDocument(f"{text_key!r} is a JSON {_name_of(text)}, not text")
    return checked_text(text)


def _name_of(value: object) -> str:
    return _JSON_NAMES.get(type(value), "null")
