"""Formats by the ending of a file's name. A new one is a file beside this and a line in it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from cache_format.metadata.spec_parts.corpus import CorpusSpec
from stages.cache_teacher.corpus.formats.arrow import open_arrow
from stages.cache_teacher.corpus.formats.byte_streams import COMPRESSIONS
from stages.cache_teacher.corpus.formats.delimited import open_csv, open_tsv
from stages.cache_teacher.corpus.formats.document_file import DataFile, DocumentFile
from stages.cache_teacher.corpus.formats.jsonl import open_jsonl
from stages.cache_teacher.corpus.formats.parquet import open_parquet
from stages.cache_teacher.corpus.formats.plain_text import open_text


@dataclass(frozen=True, kw_only=True)
class Format:
    """How files of one format are opened."""

    name: str
    open: Callable[[DataFile, CorpusSpec], DocumentFile[Any]]
    is_stream: bool = True
    """Whether it is read from its start, so that a file may be compressed as a whole."""
    has_conversations: bool = False
    """Whether a document may be a list of messages."""


PARQUET = Format(name="Parquet", open=open_parquet, is_stream=False, has_conversations=True)
TEXT = Format(name="plain text", open=open_text)
_JSONL = Format(name="JSON lines", open=open_jsonl, has_conversations=True)

FORMATS = {
    ".parquet": PARQUET,
    ".jsonl": _JSONL,
    ".ndjson": _JSONL,
    ".json": _JSONL,
    ".csv": Format(name="CSV", open=open_csv),
    ".tsv": Format(name="TSV", open=open_tsv),
    ".txt": TEXT,
    ".arrow": Format(name="Arrow stream", open=open_arrow, is_stream=False, has_conversations=True),
}
SUPPORTED = (
    f"{', '.join(FORMATS)} (all but .parquet and .arrow also with {' or '.join(COMPRESSIONS)}), "
    "or a directory written by datasets' save_to_disk"
)


def find_format(name: str) -> Format | None:
    """The format that ``name`` ends in, such as ``.jsonl`` or ``.jsonl.gz``; None if unknown."""
    path = PurePath(name)
    if path.suffix.lower() not in COMPRESSIONS:
        return FORMATS.get(path.suffix.lower())
    inner = FORMATS.get(PurePath(path.stem).suffix.lower())
    return inner if inner is not None and inner.is_stream else None


def format_of(name: str) -> Format:
    """The format that ``name`` ends in. Raises ValueError listing all where it is none of them."""
    found = find_format(name)
    if found is None:
        suffixes = "".join(PurePath(name).suffixes[-2:])
        raise ValueError(
            f"{name}: unsupported kind of file {suffixes!r}; a corpus is made of {SUPPORTED}"
        )
    return found
