"""What of an Arrow table is read: its column of texts, or its columns of conversations."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pyarrow as pa

from cache_format.metadata.spec_parts.corpus import ChatSpec, CorpusSpec
from stages.cache_teacher.corpus.formats.conversation import conversation_of
from stages.cache_teacher.corpus.formats.document_file import Document
from stages.cache_teacher.corpus.formats.text_column import (
    check_text_column,
    iter_raw,
    parse_raw,
)

_ROWS_AT_ONCE = 64


def columns_of(spec: CorpusSpec) -> list[str]:
    """The columns that are read."""
    return [spec.text_column] if spec.chat is None else list(spec.chat.columns)


def check_columns(schema: pa.Schema, name: str, spec: CorpusSpec) -> None:
    """Raise ValueError unless ``schema`` has each column once, with what may be a document."""
    if spec.chat is None:
        check_text_column(schema, name, spec.text_column)
        return
    for column in spec.chat.columns:
        _check_chat_column(schema, name, column, spec.chat)


def _check_chat_column(schema: pa.Schema, name: str, column: str, chat: ChatSpec) -> None:
    key = chat.setting_of(column)
    if schema.names.count(column) != 1:
        is_there = "no" if column not in schema.names else "more than one"
        raise ValueError(
            f"{name}: {is_there} column {column!r}; it has {', '.join(map(repr, schema.names))}. "
            f"Set {key} to one of them."
        )
    found = schema.field(column).type
    is_text = column != chat.messages_column and _is_string(found)
    if not (_is_list_of_messages(found) or is_text):
        raise ValueError(
            f"{name}: column {column!r} holds {found}, not lists of messages (structs of role and "
            f"content, or of from and value). Set {key} to a column of them."
        )


def _is_list_of_messages(found: pa.DataType) -> bool:
    """Whether it is a list of structs, or a struct of lists, as datasets stores a Sequence."""
    types = pa.types
    if types.is_struct(found):
        return all(_is_list(found.field(number).type) for number in range(found.num_fields))
    return _is_list(found) and bool(types.is_struct(found.value_type))


def _is_list(found: pa.DataType) -> bool:
    return bool(pa.types.is_list(found) or pa.types.is_large_list(found))


def _is_string(found: pa.DataType) -> bool:
    types = pa.types
    found = found.value_type if types.is_dictionary(found) else found
    return bool(
        types.is_string(found) or types.is_large_string(found) or types.is_string_view(found)
    )


def records_of(batch: pa.RecordBatch, spec: CorpusSpec) -> Iterator[Any]:
    """The records of ``batch``, for ``parser_of`` to make documents of.

    Raises ArrowInvalid or ArrowIndexError where the columns' own offsets are wrong.
    """
    if spec.chat is None:
        yield from iter_raw(batch.column(spec.text_column))
        return
    chosen = batch.select(columns_of(spec))
    chosen.validate(full=True)
    for start in range(0, chosen.num_rows, _ROWS_AT_ONCE):
        yield from chosen.slice(start, _ROWS_AT_ONCE).to_pylist()


def parser_of(spec: CorpusSpec) -> Callable[[Any], Document]:
    """What makes a document of a record."""
    if spec.chat is None:
        return parse_raw
    parse: Callable[[Mapping[str, Any]], Document] = partial(conversation_of, chat=spec.chat)
    return parse
