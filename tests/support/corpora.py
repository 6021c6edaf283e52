"""The same documents as a file of any format, and what stage one makes of such a file."""

import csv
import gzip
import io
import json
from collections.abc import Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import zstandard

from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.corpus.units import Corpus, resolve_corpus
from stages.cache_teacher.corpus_settings import CorpusSettings
from tests.support.tiny import tiny_texts, write_fineweb_parquet

_RESOLVED: list[Corpus] = []


def settings(corpus: Path | str, **changes: Any) -> CacheTeacherConfig:
    base: dict[str, Any] = {"corpus": str(corpus), "documents_per_unit": 10}
    return CacheTeacherConfig(**(base | changes))


def resolve(config: CacheTeacherConfig) -> Corpus:
    """The corpus; ``close_all`` closes it."""
    corpus = resolve_corpus(config)
    _RESOLVED.append(corpus)
    return corpus


def close_all() -> None:
    while _RESOLVED:
        _RESOLVED.pop().close()


def read_all(path: Path, **changes: Any) -> tuple[list[str], int]:
    """All documents of a corpus, and how many were left out."""
    texts: list[str] = []
    num_skipped = 0
    with closing(resolve_corpus(settings(path, **changes))) as corpus:
        for unit in count():
            documents = corpus.read_unit(unit)
            if documents is None:
                return texts, num_skipped
            texts += documents.texts
            num_skipped += documents.num_skipped
    raise AssertionError


def write(path: Path, texts: Sequence[Any]) -> Path:
    """``texts`` in the format that the name of ``path`` ends in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes == [".parquet"]:
        return write_fineweb_parquet(path, texts)
    if suffixes == [".arrow"]:
        return write_arrow(path, pa.array(texts, pa.string()))
    content = encode(suffixes[0], texts)
    path.write_bytes(compress(content, suffixes[1]) if len(suffixes) > 1 else content)
    return path


def encode(suffix: str, texts: Sequence[Any]) -> bytes:
    if suffix in (".csv", ".tsv"):
        sink = io.StringIO()
        writer = csv.writer(sink, delimiter="," if suffix == ".csv" else "\t")
        writer.writerows([["id", "text"], *enumerate(texts)])
        return sink.getvalue().encode()
    lines = texts if suffix == ".txt" else [json.dumps({"text": text}) for text in texts]
    return ("\n".join(lines) + "\n").encode()


def compress(content: bytes, suffix: str) -> bytes:
    return gzip.compress(content) if suffix == ".gz" else zstandard.compress(content)


def two_corpora(root: Path) -> tuple[CorpusSettings, ...]:
    """Three quarters documents of up to 40 words, and a quarter of up to 120, in another format and
    column."""
    write_fineweb_parquet(root / "web.parquet", tiny_texts(400))
    lines = [json.dumps({"body": text}) for text in tiny_texts(400, seed=1, max_words=120)]
    (root / "math.jsonl").write_text("\n".join(lines) + "\n")
    math = CorpusSettings(
        name="math",
        corpus=str(root / "math.jsonl"),
        text_column="body",
        documents_per_unit=4,
        weight=1,
    )
    return CorpusSettings(name="web", corpus=str(root / "web.parquet"), weight=3), math


def write_arrow(path: Path, column: pa.Array, batch_rows: int = 7) -> Path:
    table = pa.table({"id": range(len(column)), "text": column})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch_rows)
    return path
