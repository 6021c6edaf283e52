"""JSON of strangers: one meaning, or a ValueError that says why not."""

from pathlib import Path

import pytest

from cache_format.metadata.strict_json import parse_object, read_object


def test_unambiguous_json_is_parsed() -> None:
    data = '{"a": [1, 2.5, true, null, "größer \\ud83d\\ude00"], "b": {"a": -1e300}}'
    assert parse_object(data.encode()) == {
        "a": [1, 2.5, True, None, "größer 😀"],
        "b": {"a": -1e300},
    }


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "not JSON"),
        (b"\xff{}", "not UTF-8 text, from byte 0 on"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"[1]", "expected an object, found a list"),
        (b"null", "expected an object, found a NoneType"),
        (b'{"a": 1, "b": {"c": 1, "c": 1}}', "duplicate key 'c'"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": 1e999}', "1e999 is too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (b'{"a": ' + b"[" * 100_000, "nested too deep"),
        (b'{"a": "\\ud800"}', "lone surrogate"),
        (b'{"\\udfff": 1}', "lone surrogate"),
        (b'{"a": 1} {"a": 2}', "not JSON: Extra data"),
    ],
    ids=range(14),
)
def test_ambiguous_json_is_refused(data: bytes, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_object(data)
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.json: damaged: .*\. Copy it again\."):
        read_object(path, "Copy it again.")


def test_an_oversized_json_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cache_format.metadata.strict_json._MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="zero: damaged: more than 1,000 bytes"):
        read_object(Path("/dev/zero"), "Copy it again.")
