"""Whatever happens to a file of any format: its documents are read, or ValueError names it."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.corpora import read_all, write
from tests.support.tiny import tiny_texts

SUFFIXES = [
    *(".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".arrow"),
    *(".jsonl.gz", ".csv.zst", ".txt.gz"),
]
EDIT = st.tuples(st.floats(0, 1), st.integers(0, 30), st.binary(max_size=8))


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=40)
@given(
    edits=st.lists(EDIT, min_size=1, max_size=3),
    cut=st.none() | st.floats(0, 1),
    changes=st.fixed_dictionaries(
        {
            "on_bad_document": st.sampled_from(["error", "skip"]),
            "text_documents": st.sampled_from(["line", "paragraph", "file"]),
        }
    ),
)
def test_a_mutated_file_is_read_or_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory,
    suffix: str,
    edits: list[tuple[float, int, bytes]],
    cut: float | None,
    changes: dict[str, Any],
) -> None:
    path = write(tmp_path_factory.getbasetemp() / f"mutated{suffix}", tiny_texts(30))
    content = path.read_bytes()
    for where, num_removed, inserted in edits:
        at = int(where * len(content))
        content = content[:at] + inserted + content[at + num_removed :]
    path.write_bytes(content if cut is None else content[: int(cut * len(content))])
    try:
        texts, _ = read_all(path, **changes)
    except ValueError as error:
        named = type(error), path.name in str(error)
        assert named == (ValueError, True)  # and no more special one, such as UnicodeDecodeError
    else:
        assert all(text.encode() for text in texts)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_column_name_that_is_not_utf8_is_refused(
    tmp_path_factory: pytest.TempPathFactory, suffix: str
) -> None:
    path = write(tmp_path_factory.mktemp("named") / f"mutated{suffix}", tiny_texts(3))
    path.write_bytes(path.read_bytes().replace(b"text", b"te\xffx"))
    with pytest.raises(ValueError, match=rf"mutated\{suffix}: not a readable") as caught:
        read_all(path)
    assert type(caught.value) is ValueError
