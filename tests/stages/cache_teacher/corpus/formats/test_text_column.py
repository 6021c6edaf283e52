"""Parquet and Arrow: which columns are text, what is damaged, and what ``datasets`` saves."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.corpora import read_all, resolve, settings, write_arrow
from tests.support.tiny import tiny_texts, write_fineweb_parquet

TEXTS = tiny_texts(45)

STRING_TYPES = [
    *(pa.string(), pa.large_string(), pa.string_view()),
    *(pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int8(), pa.large_string())),
    *(pa.binary(), pa.large_binary()),
]


def write_column(path: Path, column: pa.Array) -> Path:
    if path.suffix == ".arrow":
        return write_arrow(path, column)
    pq.write_table(pa.table({"text": column}), path)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("kind", STRING_TYPES, ids=str)
def test_every_arrow_string_type_is_read_as_text(
    tmp_path: Path, suffix: str, kind: pa.DataType
) -> None:
    path = write_column(tmp_path / f"corpus{suffix}", pa.array([*TEXTS, None]).cast(kind))
    assert read_all(path) == (TEXTS, 1)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("kind", STRING_TYPES[:4] + STRING_TYPES[5:], ids=str)
def test_text_that_is_not_utf8_is_refused_or_skipped(
    tmp_path: Path, suffix: str, kind: pa.DataType
) -> None:
    """Neither Parquet nor Arrow checks strings, but for dictionaries of large ones."""
    binary = pa.array([b"\xef\xbb\xbfone", b"t\xffo", b"\xed\xa0\x80", b"four"], pa.binary())
    column = pa.StringArray.from_buffers(4, *binary.buffers()[1:])
    if isinstance(kind, pa.DictionaryType):
        column = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 3], kind.index_type), column)
    else:
        column = (column if kind != pa.binary() else binary).cast(kind)
    path = write_column(tmp_path / f"corpus{suffix}", column)
    with pytest.raises(ValueError, match=rf"corpus\{suffix}, document 1: not valid UTF-8"):
        read_all(path)
    assert read_all(path, on_bad_document="skip") == (["\ufeffone", "four"], 2)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("values", [[1, 2], [["a"], ["b"]], [{"text": "x"}], [None, None]])
def test_a_column_that_is_not_text_is_refused(
    tmp_path: Path, suffix: str, values: list[object]
) -> None:
    path = write_column(tmp_path / f"corpus{suffix}", pa.array(values))
    with pytest.raises(ValueError, match=rf"corpus\{suffix}: column 'text' holds .*, not text"):
        read_all(path, on_bad_document="skip")


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_missing_or_doubled_column_is_named(tmp_path: Path, suffix: str) -> None:
    path = write_column(tmp_path / f"corpus{suffix}", pa.array(TEXTS))
    with pytest.raises(ValueError, match=rf"corpus\{suffix}: no column 'body'; it has .*'text'"):
        read_all(path, text_column="body")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    parquet = write_fineweb_parquet(tmp_path / "corpus.parquet", TEXTS)
    whole = parquet.read_bytes()
    for damaged, problem in (
        (whole[:-20], "not a readable Parquet file"),
        (b"", "not a readable Parquet file"),
        (whole[:4] + b"\0" * 500 + whole[504:], "damaged near document 0"),
    ):
        parquet.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"corpus\.parquet: {problem}"):
            read_all(parquet)
    arrow = write_arrow(tmp_path / "corpus.arrow", pa.array(TEXTS))
    whole = arrow.read_bytes()
    for damaged in (b"", b"ARROW1\0\0" + whole, whole[: len(whole) // 2], whole[100:]):
        arrow.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"corpus\.arrow: not a readable Arrow stream"):
            read_all(arrow)


def test_invalid_string_offsets_are_refused_before_they_are_used(tmp_path: Path) -> None:
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 10**6, 6)))
    column = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"onetwo"))
    path = write_arrow(tmp_path / "corpus.arrow", column, batch_rows=2)
    with pytest.raises(ValueError, match=r"corpus\.arrow: damaged near document 0"):
        read_all(path)


@pytest.mark.parametrize("num_shards", [1, 3])
def test_datasets_saved_to_disk_are_read(tmp_path: Path, num_shards: int) -> None:
    import datasets

    dataset = datasets.Dataset.from_dict({"text": [*TEXTS, "last"]}).select(range(45))
    dataset.save_to_disk(str(tmp_path / "saved"), num_shards=num_shards)
    corpus = resolve(settings(tmp_path / "saved"))
    assert [name for name, _ in corpus.spec.files] == [
        f"data-{number:05d}-of-{num_shards:05d}.arrow" for number in range(num_shards)
    ]
    assert (corpus.spec.source, corpus.spec.split) == ("local", "")
    assert read_all(tmp_path / "saved", documents_per_unit=4) == (TEXTS, 0)


def test_a_saved_dataset_dictionary_is_read_by_split(tmp_path: Path) -> None:
    import datasets

    splits = {"train": TEXTS[:30], "held": TEXTS[30:]}
    saved = {name: datasets.Dataset.from_dict({"text": texts}) for name, texts in splits.items()}
    datasets.DatasetDict(saved).save_to_disk(str(tmp_path))
    assert read_all(tmp_path) == (TEXTS[:30], 0)
    assert read_all(tmp_path, corpus_split="held") == (TEXTS[30:], 0)
    spec = resolve(settings(tmp_path, corpus_split="held")).spec
    assert (spec.split, [name for name, _ in spec.files]) == (
        "held",
        ["held/data-00000-of-00001.arrow"],
    )
    with pytest.raises(ValueError, match=r"no split 'dev'; it has held, train.*corpus_split"):
        read_all(tmp_path, corpus_split="dev")


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ("{", r"state\.json: not valid JSON"),
        ("[]", r"state\.json: expected the names of \.arrow files"),
        (json.dumps({"_data_files": [{"filename": "../x.arrow"}]}), "expected the names"),
        (json.dumps({"_data_files": [{"filename": "x.arrow"}]}), "x.arrow, which is not there"),
    ],
)
def test_an_incomplete_saved_dataset_is_refused(tmp_path: Path, state: str, problem: str) -> None:
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(ValueError, match=problem):
        read_all(tmp_path)


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet_holds_text_in_any_kind_of_string_and_any_column(
    tmp_path: Path, kind: pa.DataType
) -> None:
    column = pa.array(TEXTS, pa.string())
    column = pa.array(TEXTS, kind) if kind == pa.string_view() else column.cast(kind)
    table = pa.table({"text": ["another"] * len(TEXTS), "my body.raw": column})
    pq.write_table(table, tmp_path / "corpus.parquet", row_group_size=16)
    found = read_all(tmp_path / "corpus.parquet", text_column="my body.raw")
    assert found == (TEXTS, 0)


def test_a_saved_dataset_is_read_as_it_was_when_it_was_saved(tmp_path: Path) -> None:
    import datasets

    dataset = datasets.Dataset.from_dict({"content": TEXTS})
    shuffled = dataset.shuffle(seed=1).map(lambda row: {"content": row["content"] + "!"})
    shuffled.save_to_disk(str(tmp_path / "saved"))
    expected = [text + "!" for text in dataset.shuffle(seed=1)["content"]]
    assert expected != [text + "!" for text in TEXTS]
    assert read_all(tmp_path / "saved", text_column="content") == (expected, 0)
