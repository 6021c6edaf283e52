"""Every line that holds no text is refused by file and line, or left out and counted."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.cache_teacher.corpus.formats.document_file import BadDocument
from stages.cache_teacher.corpus.formats.jsonl import parse_json_line
from tests.support.corpora import read_all

BAD_LINES = {
    b"{": "not valid JSON",
    b"[1]": "holds a JSON array, not an object",
    b"null": "holds a JSON null, not an object",
    b'"text"': "holds a JSON string, not an object",
    b'{"body": "x"}': "no key 'text'; its keys: 'body'",
    b"{}": "no key 'text'; its keys: none",
    b'{"text": 3}': "'text' is a JSON number, not text",
    b'{"text": ' + b"9" * 5000 + b"}": "'text' is a JSON number, not text",
    b'{"text": true}': "'text' is a JSON boolean, not text",
    b'{"text": ["x"]}': "'text' is a JSON array, not text",
    b'{"text": {"text": "x"}}': "'text' is a JSON object, not text",
    b'{"text": "\\ud800"}': "not valid Unicode",
    b'{"text": "\\udc00\\ud800"}': "not valid Unicode",
    b'{"text": "\xff"}': "not valid UTF-8",
    b'{"text": "\xed\xa0\x80"}': "not valid UTF-8",
    b'{"text": "one", "text": "two"}': "'text' is there twice",
    b'{"a": ' + b"[" * 100_000: "nested too deeply",
    b'\0{"text": "x"}': "not valid JSON",
    b'{"text": "x"} {"text": "y"}': "not valid JSON",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: repr(line[:20]))
def test_bad_lines_are_refused_or_skipped(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b'{"text": "one"}\n' + line + b'\n{"text": "two"}\n')
    with pytest.raises(ValueError, match=r"corpus\.jsonl, line 2: .*" + BAD_LINES[line]) as caught:
        read_all(path)
    assert len(str(caught.value)) < 400
    assert read_all(path, on_bad_document="skip") == (["one", "two"], 1)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"text": "\\ud83d\\ude00"}', "😀"),
        (b'{"text": "a\\u0000b"}', "a\0b"),
        (b'{"text": "a\\r\\nb"}\r', "a\r\nb"),
        (b'\xef\xbb\xbf{"text": "x"}', "x"),
        (b'{"id": ' + b"9" * 5000 + b', "text": "x"}', "x"),
        (b'{"a": 1, "a": 2, "text": "x"}', "x"),
        (b' {"a": NaN, "text": "x"} ', "x"),
        ('{"text": "a\u2028b"}'.encode(), "a\u2028b"),
        (b'{"text": null}', ""),
        (b" \t\r", ""),
    ],
)
def test_valid_json_lines_give_their_text(line: bytes, text: str) -> None:
    assert parse_json_line(line, "text") == text


def test_a_json_array_is_refused_saying_what_was_expected(tmp_path: Path) -> None:
    path = tmp_path / "corpus.json"
    path.write_text(json.dumps([{"text": "x"}], indent=1))
    with pytest.raises(ValueError, match=r"corpus\.json, line 1: .*each line must be an object"):
        read_all(path)


LINE = json.dumps({"id": 1, "text": 'a "b" \\ é \U0001f600\n', "meta": [{}, None]}).encode()


@given(
    edits=st.lists(st.tuples(st.integers(0, len(LINE)), st.binary(max_size=3)), max_size=4),
    cut=st.integers(0, len(LINE)),
)
def test_a_mutated_line_is_read_or_refused(edits: list[tuple[int, bytes]], cut: int) -> None:
    line = LINE
    for at, inserted in edits:
        line = line[:at] + inserted + line[at + len(inserted) // 2 :]
    document = parse_json_line(line[cut:] if cut % 3 == 0 else line, "text")
    assert isinstance(document, BadDocument) or document.encode().decode() == document


@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    """Nothing but ValueError naming file and line ends a read."""
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(content + b"\n" + LINE)
    try:
        texts, num_skipped = read_all(path, on_bad_document="skip")
    except ValueError as error:
        assert str(error).startswith("any.jsonl: not what its name says")  # noqa: PT017
    else:
        assert len(texts) + num_skipped == content.count(b"\n") + 2
