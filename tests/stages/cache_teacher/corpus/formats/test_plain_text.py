"""Plain text by line, by paragraph and by file; what is not UTF-8 is refused or left out."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.cache_teacher.corpus.formats import plain_text as text_module
from stages.cache_teacher.corpus.formats.document_file import TOO_LONG
from stages.cache_teacher.corpus.formats.plain_text import iter_paragraphs
from stages.cache_teacher.corpus.units import resolve_corpus
from tests.support.corpora import compress, read_all, resolve, settings

CONTENT = "\ufeffone\r\n two\n\n \t\n\nthrée\r\n\r\nfour"
PARAGRAPHS = ["one\n two", "thrée", "four"]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize(
    ("text_documents", "expected"),
    [
        ("line", (["one", " two", "thrée", "four"], 4)),
        ("paragraph", (PARAGRAPHS, 0)),
        ("file", (["one\n two\n\n \t\n\nthrée\n\nfour"], 0)),
    ],
)
def test_a_document_is_a_line_a_paragraph_or_a_file(
    tmp_path: Path, suffix: str, text_documents: str, expected: tuple[list[str], int]
) -> None:
    path = tmp_path / f"corpus.txt{suffix}"
    path.write_bytes(compress(CONTENT.encode(), suffix) if suffix else CONTENT.encode())
    assert read_all(path, text_documents=text_documents) == expected


@pytest.mark.parametrize("unit", [3, 1, 0])
def test_a_unit_is_several_files_where_each_file_is_a_document(tmp_path: Path, unit: int) -> None:
    for number in range(7):
        (tmp_path / f"{number}.txt").write_text(f"document\n\n{number}\n")
    corpus = resolve(settings(tmp_path, text_documents="file", documents_per_unit=2))
    assert [name for name, _ in corpus.spec.files] == [f"{number}.txt" for number in range(7)]
    read = corpus.read_unit(unit)
    assert read is not None
    assert read.texts == [f"document\n\n{number}\n" for number in range(7)][2 * unit : 2 * unit + 2]
    assert corpus.read_unit(4) is None


def test_an_invalid_whole_file_document_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_bytes(b"t\xffo")
    with pytest.raises(ValueError, match=r"b\.txt: not valid UTF-8"):
        read_all(tmp_path, text_documents="file")
    skipping = {"text_documents": "file", "on_bad_document": "skip"}
    assert read_all(tmp_path, **skipping) == (["one"], 1)


def test_the_spec_names_the_document_kind_unless_it_is_a_line(tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl"):
        (tmp_path / name).write_text("{}\n")

    def said(name: str, text_documents: str) -> str | None:
        config = settings(tmp_path / name, text_documents=text_documents)
        return resolve_corpus(config).spec.text_documents

    assert [said("a.txt", kind) for kind in ("line", "paragraph", "file")] == [
        *(None, "paragraph", "file")
    ]
    assert said("a.jsonl", "paragraph") is None


def test_lines_and_paragraphs_that_are_not_utf8_are_refused_or_skipped(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"one\n\nt\xffo\n\nthree\n")
    with pytest.raises(ValueError, match=r"corpus\.txt, line 3: not valid UTF-8"):
        read_all(path)
    with pytest.raises(ValueError, match=r"corpus\.txt, paragraph 2: not valid UTF-8"):
        read_all(path, text_documents="paragraph")
    assert read_all(path, on_bad_document="skip") == (["one", "three"], 3)
    assert read_all(path, on_bad_document="skip", text_documents="paragraph") == (
        ["one", "three"],
        1,
    )


def naive_paragraphs(lines: Iterable[bytes]) -> list[bytes]:
    blocks: list[list[bytes]] = [[]]
    for line in lines:
        if line.strip():
            blocks[-1].append(line)
        else:
            blocks.append([])
    return [b"\n".join(block) for block in blocks if block]


@given(st.lists(st.sampled_from([b"", b" \t", b"a", b"b\r", b"\r"]), max_size=12))
def test_paragraphs_equal_the_naive_split(lines: list[bytes]) -> None:
    assert list(iter_paragraphs(lines)) == naive_paragraphs(lines)


def test_a_paragraph_that_is_too_long_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "MAX_DOCUMENT_BYTES", 8)
    assert list(iter_paragraphs([b"abc", b"def", b"", b"abc", b"defg", b"", b"x"])) == [
        *(b"abc\ndef", TOO_LONG, b"x")
    ]
    assert list(iter_paragraphs([b"abc", TOO_LONG, b"", b"x"])) == [TOO_LONG, b"x"]
