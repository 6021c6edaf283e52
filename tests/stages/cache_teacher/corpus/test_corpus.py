"""Any kind of corpus gives the same documents, unit by unit, and names what it cannot read."""

import hashlib
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.corpus import corpus_files
from stages.cache_teacher.corpus.corpus import Corpus, CorpusFile, UnitDocuments, resolve_corpus
from tests.tiny import tiny_texts, write_fineweb_parquet

TEXTS = tiny_texts(45)


def settings(corpus: Path | str, **changes: Any) -> CacheTeacherConfig:
    base: dict[str, Any] = {"corpus": str(corpus), "documents_per_unit": 10}
    return CacheTeacherConfig(**(base | changes))


def write(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        return write_fineweb_parquet(path, texts)
    lines = texts if path.suffix == ".txt" else [json.dumps({"text": text}) for text in texts]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def all_units(corpus: Corpus) -> Iterator[UnitDocuments]:
    unit = 0
    while (documents := corpus.read_unit(unit)) is not None:
        yield documents
        unit += 1
    assert not corpus.has_unit(unit)


SUFFIXES = [".parquet", ".jsonl", ".ndjson", ".json", ".txt"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_file_gives_the_same_documents(tmp_path: Path, suffix: str) -> None:
    corpus = resolve_corpus(settings(write(tmp_path / f"corpus{suffix}", TEXTS)))
    units = list(all_units(corpus))
    assert [unit.texts for unit in units] == [TEXTS[at : at + 10] for at in range(0, 45, 10)]
    assert [unit.num_skipped for unit in units] == [0] * 5


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_directory_is_read_in_the_order_of_its_names(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "corpus" / f"b{suffix}", TEXTS[25:])
    write(tmp_path / "corpus" / f"a{suffix}", TEXTS[:25])
    (tmp_path / "corpus" / "README.md").write_text("not a document")
    (tmp_path / "corpus" / ".hidden").write_text("not a document")
    units = list(all_units(resolve_corpus(settings(tmp_path / "corpus"))))
    assert [len(unit.texts) for unit in units] == [10, 10, 5, 10, 10]  # no unit spans two files
    assert [text for unit in units for text in unit.texts] == TEXTS
    assert units[3].position == f"b{suffix} (file 2 of 2), documents 0-9 of 20"


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".txt"])
@pytest.mark.parametrize("unit", [4, 2, 0])
def test_any_unit_can_be_read_first_and_again(tmp_path: Path, suffix: str, unit: int) -> None:
    corpus = resolve_corpus(settings(write(tmp_path / f"corpus{suffix}", TEXTS)))
    for _ in range(2):
        documents = corpus.read_unit(unit)
        assert documents is not None
        assert documents.texts == TEXTS[10 * unit : 10 * unit + 10]


def test_files_without_documents_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [])
    write(tmp_path / "b.parquet", TEXTS[:3])
    write(tmp_path / "c.parquet", [])
    assert [unit.texts for unit in all_units(resolve_corpus(settings(tmp_path)))] == [TEXTS[:3]]


def test_reading_on_decodes_no_row_group_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_fineweb_parquet(tmp_path / "one.parquet", TEXTS * 30, row_group_size=10**6)
    decoded = 0
    texts_of_column = corpus_files._texts_of_column

    def counting(column: pa.Array) -> Any:
        nonlocal decoded
        decoded += len(column)
        return texts_of_column(column)

    monkeypatch.setattr(corpus_files, "_texts_of_column", counting)
    assert len(list(all_units(resolve_corpus(settings(path))))) == 135
    assert decoded == len(TEXTS) * 30


def test_seeking_skips_the_row_groups_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_fineweb_parquet(tmp_path / "one.parquet", TEXTS, row_group_size=10)
    asked: list[list[int]] = []
    iter_batches = pq.ParquetFile.iter_batches

    def recording(self: Any, **options: Any) -> Any:
        asked.append(options["row_groups"])
        assert options["columns"] == ["text"]
        return iter_batches(self, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", recording)
    resolve_corpus(settings(path, documents_per_unit=15)).read_unit(2)
    assert asked == [[3, 4]]


def test_local_files_are_pinned_by_their_hash(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path / name, TEXTS)
    spec = resolve_corpus(settings(tmp_path)).spec
    expected = hashlib.sha256((tmp_path / "a.jsonl").read_bytes()).hexdigest()
    assert spec.files == (("a.jsonl", expected), ("b.jsonl", expected))
    assert (spec.source, spec.revision, spec.config, spec.split) == ("local", "", "", "")


def test_where_local_files_lie_is_no_part_of_the_spec(tmp_path: Path) -> None:
    one, other = write(tmp_path / "1/x.parquet", TEXTS), write(tmp_path / "2/x.parquet", TEXTS)
    assert resolve_corpus(settings(one)).spec == resolve_corpus(settings(other)).spec


def test_lines_may_end_in_any_way(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes("\ufeffone\r\ntwo\n\n  \nthrée".encode())
    (unit,) = all_units(resolve_corpus(settings(path)))
    assert (unit.texts, unit.num_skipped) == (["one", "two", "thrée"], 2)


@pytest.mark.parametrize("stride", [1, 2, 3, 7, 45, 46])
def test_line_index_finds_every_stride(
    tmp_path: Path, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_files, "_BLOCK_BYTES", 100)  # so that lines cross blocks
    path = write(tmp_path / "corpus.txt", TEXTS)
    config = settings(path, documents_per_unit=stride)
    units = list(all_units(resolve_corpus(config)))
    assert [text for unit in units for text in unit.texts] == TEXTS
    assert all(len(unit.texts) == stride for unit in units[:-1])


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_empty_and_absent_documents_are_counted(tmp_path: Path, suffix: str) -> None:
    texts: Any = ["one", "", None, " \n\t", "two"]
    corpus = resolve_corpus(settings(write(tmp_path / f"corpus{suffix}", texts)))
    (unit,) = all_units(corpus)
    assert (unit.texts, unit.num_skipped) == (["one", "two"], 3)


BAD_LINES = {
    "{": "not valid JSON",
    "[1]": "a JSON list, not an object",
    '{"body": "x"}': "no key 'text'; its keys: 'body'",
    '{"text": 3}': "'text' is a JSON int, not text",
    "\udcff": "not valid JSON",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_json_lines_are_refused_or_skipped(tmp_path: Path, line: str) -> None:
    path = tmp_path / "corpus.jsonl"
    lines = '{"text": "one"}\n' + line + '\n{"text": "two"}\n'
    path.write_bytes(lines.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"corpus\.jsonl, line 2: .*" + BAD_LINES[line]):
        resolve_corpus(settings(path)).read_unit(0)
    unit = resolve_corpus(settings(path, on_bad_document="skip")).read_unit(0)
    assert unit is not None
    assert (unit.texts, unit.num_skipped) == (["one", "two"], 1)


def test_text_that_is_not_utf8_is_refused_or_skipped(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_bytes(b"one\nt\xffo\nthree\n")
    binary = pa.array([b"one", b"t\xffo", b"three"], pa.binary())
    strings = pa.StringArray.from_buffers(3, *binary.buffers()[1:])
    pq.write_table(pa.table({"text": strings}), tmp_path / "corpus.parquet")
    for name, place in (("corpus.txt", "line 2"), ("corpus.parquet", "document 1")):
        path = tmp_path / name
        with pytest.raises(ValueError, match=f"{name}, {place}: not valid UTF-8"):
            resolve_corpus(settings(path)).read_unit(0)
        unit = resolve_corpus(settings(path, on_bad_document="skip")).read_unit(0)
        assert unit is not None
        assert (unit.texts, unit.num_skipped) == (["one", "three"], 1)


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    path = write_fineweb_parquet(tmp_path / "corpus.parquet", TEXTS)
    with pytest.raises(ValueError, match=r"corpus\.parquet: no column 'body'; it has 'text', 'id'"):
        resolve_corpus(settings(path, text_column="body")).read_unit(0)


def test_a_column_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = write_fineweb_parquet(tmp_path / "corpus.parquet", TEXTS)
    with pytest.raises(ValueError, match="column 'token_count' holds int64, not text"):
        resolve_corpus(settings(path, text_column="token_count")).read_unit(0)


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_every_kind_of_string_is_text(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"text": pa.array(TEXTS).cast(kind)}), tmp_path / "x.parquet")
    units = all_units(resolve_corpus(settings(tmp_path / "x.parquet")))
    assert [text for unit in units for text in unit.texts] == TEXTS


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    path = write_fineweb_parquet(tmp_path / "corpus.parquet", TEXTS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"corpus\.parquet: not a readable Parquet file"):
        resolve_corpus(settings(path)).read_unit(0)
    path.write_bytes(whole[:4] + b"\0" * 500 + whole[504:])
    with pytest.raises(ValueError, match=r"corpus\.parquet: damaged near document 0"):
        resolve_corpus(settings(path)).read_unit(0)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["a.parquet", "b.jsonl"], r"more than one kind \(a\.parquet, b\.jsonl\)"),
        (["a.jsonl", "b.jsonl.gz"], r"b\.jsonl\.gz: unsupported kind of file '\.gz'"),
        ([], r"holds no \.parquet/\.jsonl/\.ndjson/\.json/\.txt file"),
    ],
)
def test_directories_that_are_no_corpus(tmp_path: Path, names: list[str], problem: str) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=problem):
        resolve_corpus(settings(tmp_path))


@pytest.mark.parametrize("name", ["missing.parquet", "missing"])
def test_a_path_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="no such file or directory"):
        resolve_corpus(settings(tmp_path / name))


def test_an_empty_corpus_has_no_units(tmp_path: Path) -> None:
    corpus = resolve_corpus(settings(write(tmp_path / "corpus.parquet", [])))
    assert not corpus.has_unit(0)
    assert corpus.read_unit(0) is None


SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub that holds one dataset: its repository is a directory, resolved by ``datasets``."""
    import datasets
    import huggingface_hub

    repository = tmp_path / f"org/web@{SHA}"
    load = datasets.load_dataset_builder

    def info(self: object, name: str, revision: str) -> SimpleNamespace:
        if (name, revision) != ("org/web", "v1"):
            raise FileNotFoundError(f"404: {name} at {revision}")
        return SimpleNamespace(sha=SHA)

    def builder(name: str, config: str, revision: str) -> Any:
        assert (name, revision) == ("org/web", SHA)
        return load(str(repository), config, cache_dir=str(tmp_path / "datasets"))

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    write_fineweb_parquet(repository / "sample/10BT/000.parquet", TEXTS[:20])
    write_fineweb_parquet(repository / "sample/10BT/001.parquet", TEXTS[20:])
    write_fineweb_parquet(repository / "held/000.parquet", TEXTS[:3])
    (repository / "README.md").write_text(
        "---\nconfigs:\n- config_name: sample-10BT\n  data_files:\n"
        "  - split: train\n    path: sample/10BT/*\n"
        "  - split: test\n    path: held/*\n"
        "- config_name: other\n  data_files: held/*\n---\n"
    )
    return repository


def test_a_hub_dataset_is_pinned_by_its_commit(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    open_binary = corpus_files.open_binary

    def recording(url: str) -> IO[bytes]:
        opened.append(url)
        return open_binary(url)

    monkeypatch.setattr(corpus_files, "open_binary", recording)
    corpus = resolve_corpus(settings("org/web", corpus_revision="v1"))
    assert corpus.spec.source == "org/web"
    assert (corpus.spec.revision, corpus.spec.config, corpus.spec.split) == (
        SHA,
        "sample-10BT",
        "train",
    )
    assert corpus.spec.files == (("sample/10BT/000.parquet", ""), ("sample/10BT/001.parquet", ""))
    assert opened == []
    assert corpus.has_unit(1)
    assert len(opened) == 1  # footers are read file by file, as far as needed
    assert [text for unit in all_units(corpus) for text in unit.texts] == TEXTS


def test_hub_datasets_that_are_not_there(hub: Path) -> None:
    with pytest.raises(ValueError, match=r"corpus 'org/other' .*cannot be resolved: 404"):
        resolve_corpus(settings("org/other"))
    with pytest.raises(ValueError, match=r"'org/web' .*sample-100BT.* not found"):
        resolve_corpus(settings("org/web", corpus_revision="v1", corpus_config="sample-100BT"))
    with pytest.raises(ValueError, match=r"no split 'dev'; it has test, train"):
        resolve_corpus(settings("org/web", corpus_revision="v1", corpus_split="dev"))


@pytest.mark.parametrize("suffix", [".jsonl", ".txt"])
def test_lines_on_the_hub_are_refused_before_any_is_read(hub: Path, suffix: str) -> None:
    for path in list(hub.rglob("*.parquet")):
        path.unlink()
        write(path.with_suffix(suffix), TEXTS)
    expected = rf"'org/web': sample/10BT/000\{suffix} is .*hf download .* org/web .*Parquet"
    with pytest.raises(ValueError, match=expected):
        resolve_corpus(settings("org/web", corpus_revision="v1"))


def test_any_file_system_will_do(tmp_path: Path) -> None:
    import fsspec

    content = write(tmp_path / "corpus.parquet", TEXTS).read_bytes()
    local = resolve_corpus(settings(tmp_path / "corpus.parquet"))
    remote = fsspec.filesystem("memory")
    remote.pipe_file("/corpus.parquet", content)
    file = CorpusFile("memory://corpus.parquet", "corpus.parquet", "parquet")
    assert list(all_units(Corpus(local.spec, [file]))) == list(all_units(local))


def test_threads_may_read_any_unit(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_fineweb_parquet(tmp_path / "many" / f"{name}.parquet", tiny_texts(60, seed=ord(name)))
    corpus = resolve_corpus(settings(tmp_path / "many", documents_per_unit=7))
    alone = [corpus.read_unit(unit) for unit in range(20)]
    assert alone[17] is not None
    assert alone[18] is None
    order = [*range(20)] * 5
    random.Random(0).shuffle(order)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(corpus.read_unit, order)) == [alone[unit] for unit in order]
    corpus.close()
