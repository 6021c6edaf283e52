"""Compressed files: what is cut short, damaged or of another kind is named; memory is bounded."""

import gzip
import io
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard

from stages.cache_teacher.corpus.formats import byte_streams
from stages.cache_teacher.corpus.formats.byte_streams import iter_lines, open_stream
from stages.cache_teacher.corpus.formats.document_file import TOO_LONG, DataFile
from tests.support.corpora import compress, encode, read_all, resolve, settings
from tests.support.tiny import tiny_texts

TEXTS = tiny_texts(45)
CONTENT = encode(".jsonl", TEXTS)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_concatenated_compressed_files_are_read_as_one(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"corpus.jsonl{suffix}"
    path.write_bytes(compress(CONTENT, suffix) * 2)
    assert read_all(path) == (TEXTS * 2, 0)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt"])
def test_a_truncated_compressed_file_is_named(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"corpus.{kind}{suffix}"
    whole = compress(encode(f".{kind}", TEXTS), suffix)
    for damaged in (whole[:-1], whole[:-9], whole[:3], b"", whole + b"more", CONTENT):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"corpus\.{kind}\{suffix}: damaged, cut short or"):
            read_all(path, on_bad_document="skip")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (gzip.compress(CONTENT), r"gzip data; its name should end in \.gz"),
        (zstandard.compress(CONTENT), r"zstd data; its name should end in \.zst"),
        (b"PAR1\x15\x04", "Parquet"),
        (b"PK\x03\x04 ", "a ZIP archive"),
        (CONTENT.decode().encode("utf-16"), "UTF-16 text"),
    ],
)
@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.txt", "corpus.csv"])
def test_a_file_whose_content_contradicts_its_name_is_named(
    tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: not what its name says: it holds {problem}"):
        read_all(tmp_path / name, on_bad_document="skip")


def test_lines_that_are_too_long_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_streams, "MAX_DOCUMENT_BYTES", 4)
    monkeypatch.setattr(byte_streams, "BLOCK_BYTES", 3)
    content = b"abcd\nabcde\n\nabcdefghij\nx\nabcde"
    assert list(iter_lines(io.BytesIO(content))) == [
        *(b"abcd", TOO_LONG, b"", TOO_LONG, b"x", TOO_LONG)
    ]


def test_a_decompression_bomb_is_read_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 MiB in one line, compressed to some kilobytes."""
    monkeypatch.setattr(byte_streams, "MAX_DOCUMENT_BYTES", 1 << 20)
    path = tmp_path / "corpus.jsonl.zst"
    path.write_bytes(zstandard.compress(b"x" * (64 << 20) + b"\n" + CONTENT))
    assert path.stat().st_size < 20_000
    tracemalloc.start()
    with open_stream(DataFile(str(path), path.name)) as stream:
        lines = list(iter_lines(stream))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert lines[0] == TOO_LONG
    assert len(lines) == 1 + len(TEXTS)
    assert peak < 8 << 20


def test_a_resumed_run_reads_a_compressed_file_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pass counts its documents, one reads them in rising order, each further one goes back."""
    path = tmp_path / "corpus.jsonl.gz"
    path.write_bytes(compress(CONTENT, ".gz"))
    opened = 0
    compressed_stream = pa.CompressedInputStream

    def counting(*arguments: Any) -> Any:
        nonlocal opened
        opened += 1
        return compressed_stream(*arguments)

    monkeypatch.setattr(pa, "CompressedInputStream", counting)
    corpus = resolve(settings(path))
    for unit, passes in ((0, 2), (2, 2), (3, 2), (1, 3), (4, 3)):
        documents = corpus.read_unit(unit)
        assert documents is not None
        assert documents.texts == TEXTS[10 * unit : 10 * unit + 10]
        assert opened == passes
