"""CSV and TSV: rows are records rather than lines, and a bad one is named."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.cache_teacher.corpus.formats import delimited
from tests.support.corpora import encode, read_all, write


def test_quoted_fields_may_hold_quotes_commas_and_line_breaks(tmp_path: Path) -> None:
    texts = ['a "b", c', "two\nlines\r\nand more", "\0", "x" * 200_000]
    for suffix in (".csv", ".tsv", ".csv.gz"):
        assert read_all(write(tmp_path / f"corpus{suffix}", texts)) == (texts, 0)


BAD_ROWS = {
    b"1\n": "has 1 fields where the first row has 2",
    b"1,x,y\n": "has 3 fields where the first row has 2",
    b"1,t\xffo\n": "not valid Unicode",
}


@pytest.mark.parametrize("row", BAD_ROWS)
def test_bad_rows_are_refused_or_skipped(tmp_path: Path, row: bytes) -> None:
    path = tmp_path / "corpus.csv"
    path.write_bytes(b"\xef\xbb\xbfid,text\r\n0,one\r\n" + row + b"\r\n3,\r\n4,two")
    with pytest.raises(ValueError, match=r"corpus\.csv, row 2: .*" + BAD_ROWS[row]):
        read_all(path)
    assert read_all(path, on_bad_document="skip") == (["one", "two"], 3)  # of which two are empty


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", r"names no column 'text'; it has none"),
        ("id,body\n1,x\n", r"names no column 'text'; it has 'id', 'body'\. Set text_column"),
        ("text,text\n1,x\n", r"names 2 times the column 'text'"),
        ('id,text\n1,"x" y\n', r"corpus\.csv, line 2: not valid CSV"),
        ('id,text\n1,x\n2,"y\n', r"corpus\.csv, line 3: not valid CSV: unexpected end"),
    ],
)
def test_files_without_a_text_column_are_refused(
    tmp_path: Path, content: str, problem: str
) -> None:
    path = tmp_path / "corpus.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=problem):
        read_all(path, on_bad_document="skip")


@pytest.mark.parametrize("field", ["x" * 200, '"' + "x\n" * 100 + '"', '"' + "xxxxxxxx\n" * 20])
def test_an_endless_row_is_not_read_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    monkeypatch.setattr(delimited, "MAX_DOCUMENT_BYTES", 100)
    limit = csv.field_size_limit()
    path = tmp_path / "corpus.csv"
    path.write_text(f"text\nshort\n{field}\n")
    with pytest.raises(ValueError, match=r"corpus\.csv, line \d+: not valid CSV: .*(long|limit)"):
        read_all(path)
    csv.field_size_limit(limit)


@given(st.lists(st.text(alphabet='a,"\n\r\t é', min_size=1, max_size=6), max_size=25))
def test_rows_equal_those_of_the_csv_module(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(encode(".csv", texts))
    rows = list(csv.reader(io.StringIO(path.read_bytes().decode(), newline="")))
    expected = [row[1] for row in rows[1:] if row[1].strip()]
    assert read_all(path, documents_per_unit=3) == (expected, len(texts) - len(expected))
