"""A column of strings in Arrow's memory: which types are text, and its values as documents."""

from collections.abc import Iterator

import pyarrow as pa

from stages.cache_teacher.corpus.formats.document_file import Text, decoded

_ROWS_AT_ONCE = 512


def check_text_column(schema: pa.Schema, name: str, text_column: str) -> None:
    """Raise ValueError unless ``schema`` has one such column, of strings or bytes."""
    if schema.names.count(text_column) != 1:
        is_there = "no" if text_column not in schema.names else "more than one"
        raise ValueError(
            f"{name}: {is_there} column {text_column!r}; it has "
            f"{', '.join(map(repr, schema.names))}. Set text_column to the one that holds the text."
        )
    found = schema.field(text_column).type
    if not _is_text(found.value_type if pa.types.is_dictionary(found) else found):
        raise ValueError(
            f"{name}: column {text_column!r} holds {found}, not text. "
            "Set text_column to a column of strings."
        )


def iter_raw(column: pa.Array) -> Iterator[bytes]:
    """The column's values as bytes, which nobody has checked to be UTF-8; null is empty.

    Raises ArrowInvalid or ArrowIndexError where the column's own offsets are wrong.
    """
    for start in range(0, len(column), _ROWS_AT_ONCE):
        rows = column.slice(start, _ROWS_AT_ONCE)
        if isinstance(rows, pa.DictionaryArray):
            rows = rows.dictionary.cast(pa.large_binary()).take(rows.indices)
        rows = rows.cast(pa.large_binary())
        rows.validate(full=True)
        yield from (value or b"" for value in rows.to_pylist())


def parse_raw(raw: bytes) -> Text:
    """``raw`` is a document; a byte-order mark in it is part of the text."""
    return decoded(raw)


def _is_text(found: pa.DataType) -> bool:
    types = pa.types
    is_string = types.is_string(found) or types.is_large_string(found)
    is_binary = types.is_binary(found) or types.is_large_binary(found)
    is_view = types.is_string_view(found) or types.is_binary_view(found)
    return bool(is_string or is_binary or is_view)
