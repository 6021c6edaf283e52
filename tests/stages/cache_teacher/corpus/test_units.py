"""Any kind of corpus gives the same documents, unit by unit, and names what it cannot read."""

import hashlib
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.cache_teacher.corpus import open_file
from stages.cache_teacher.corpus.formats import columns, line_file, parquet, text_column
from stages.cache_teacher.corpus.formats.document_file import DataFile
from stages.cache_teacher.corpus.units import Corpus, UnitDocuments, corpus_parts
from tests.support import corpora
from tests.support.tiny import tiny_texts, write_fineweb_parquet

TEXTS = tiny_texts(45)


def all_units(corpus: Corpus) -> Iterator[UnitDocuments]:
    unit = 0
    while (documents := corpus.read_unit(unit)) is not None:
        yield documents
        unit += 1
    assert not corpus.has_unit(unit)


SUFFIXES = [
    *(".parquet", ".arrow", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt"),
    *(".jsonl.gz", ".json.zst", ".csv.gz", ".tsv.zst", ".txt.gz", ".TXT.ZST"),
]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_file_gives_the_same_documents(tmp_path: Path, suffix: str) -> None:
    corpus = corpora.resolve(corpora.settings(corpora.write(tmp_path / f"corpus{suffix}", TEXTS)))
    units = list(all_units(corpus))
    assert [unit.texts for unit in units] == [TEXTS[at : at + 10] for at in range(0, 45, 10)]
    assert [unit.num_skipped for unit in units] == [0] * 5


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_directory_is_read_in_order_of_file_names(tmp_path: Path, suffix: str) -> None:
    corpora.write(tmp_path / "corpus" / f"b{suffix}", TEXTS[25:])
    corpora.write(tmp_path / "corpus" / f"a{suffix}", TEXTS[:25])
    (tmp_path / "corpus" / "README.md").write_text("not a document")
    (tmp_path / "corpus" / ".hidden").write_text("not a document")
    units = list(all_units(corpora.resolve(corpora.settings(tmp_path / "corpus"))))
    assert [len(unit.texts) for unit in units] == [10, 10, 5, 10, 10]  # no unit spans two files
    assert [text for unit in units for text in unit.texts] == TEXTS
    assert units[3].position == f"b{suffix} (file 2 of 2), documents 0-9 of 20"


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("unit", [4, 2, 0])
def test_units_can_be_read_in_any_order_and_repeatedly(
    tmp_path: Path, suffix: str, unit: int
) -> None:
    corpus = corpora.resolve(corpora.settings(corpora.write(tmp_path / f"corpus{suffix}", TEXTS)))
    for _ in range(2):
        documents = corpus.read_unit(unit)
        assert documents is not None
        assert documents.texts == TEXTS[10 * unit : 10 * unit + 10]


def test_files_without_documents_are_skipped(tmp_path: Path) -> None:
    corpora.write(tmp_path / "a.parquet", [])
    corpora.write(tmp_path / "b.parquet", TEXTS[:3])
    corpora.write(tmp_path / "c.parquet", [])
    assert [unit.texts for unit in all_units(corpora.resolve(corpora.settings(tmp_path)))] == [
        TEXTS[:3]
    ]


def test_sequential_reading_decodes_no_row_group_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_fineweb_parquet(tmp_path / "one.parquet", TEXTS * 30, row_group_size=10**6)
    decoded = 0
    iter_raw = text_column.iter_raw

    def counting(column: pa.Array) -> Any:
        nonlocal decoded
        decoded += len(column)
        return iter_raw(column)

    monkeypatch.setattr(columns, "iter_raw", counting)
    assert len(list(all_units(corpora.resolve(corpora.settings(path))))) == 135
    assert decoded == len(TEXTS) * 30


def test_seeking_skips_earlier_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_fineweb_parquet(tmp_path / "one.parquet", TEXTS, row_group_size=10)
    asked: list[list[int]] = []
    iter_batches = pq.ParquetFile.iter_batches

    def recording(self: Any, **options: Any) -> Any:
        asked.append(options["row_groups"])
        assert options["columns"] == ["text"]
        return iter_batches(self, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", recording)
    corpora.resolve(corpora.settings(path, documents_per_unit=15)).read_unit(2)
    assert asked == [[3, 4]]


def test_local_files_are_pinned_by_their_hash(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        corpora.write(tmp_path / name, TEXTS)
    spec = corpora.resolve(corpora.settings(tmp_path)).spec
    expected = hashlib.sha256((tmp_path / "a.jsonl").read_bytes()).hexdigest()
    assert spec.files == (("a.jsonl", expected), ("b.jsonl", expected))
    assert (spec.source, spec.revision, spec.config, spec.split) == ("local", "", "", "")


def test_the_spec_does_not_depend_on_where_local_files_lie(tmp_path: Path) -> None:
    one, other = (
        corpora.write(tmp_path / "1/x.parquet", TEXTS),
        corpora.write(tmp_path / "2/x.parquet", TEXTS),
    )
    assert (
        corpora.resolve(corpora.settings(one)).spec == corpora.resolve(corpora.settings(other)).spec
    )


def test_any_line_ending_separates_documents(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes("\ufeffone\r\ntwo\n\n  \nthrée".encode())
    (unit,) = all_units(corpora.resolve(corpora.settings(path)))
    assert (unit.texts, unit.num_skipped) == (["one", "two", "thrée"], 2)


@pytest.mark.parametrize("stride", [1, 2, 3, 7, 45, 46])
def test_the_line_index_finds_every_unit(
    tmp_path: Path, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_file, "BLOCK_BYTES", 100)  # so that lines cross blocks
    path = corpora.write(tmp_path / "corpus.txt", TEXTS)
    config = corpora.settings(path, documents_per_unit=stride)
    units = list(all_units(corpora.resolve(config)))
    assert [text for unit in units for text in unit.texts] == TEXTS
    assert all(len(unit.texts) == stride for unit in units[:-1])


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_empty_and_null_documents_are_counted_as_skipped(tmp_path: Path, suffix: str) -> None:
    texts: Any = ["one", "", None, " \n\t", "two"]
    corpus = corpora.resolve(corpora.settings(corpora.write(tmp_path / f"corpus{suffix}", texts)))
    (unit,) = all_units(corpus)
    assert (unit.texts, unit.num_skipped) == (["one", "two"], 3)


@pytest.mark.parametrize("name", ["missing.parquet", "missing"])
def test_a_missing_corpus_path_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="no such file or directory"):
        corpora.resolve(corpora.settings(tmp_path / name))


def test_an_empty_corpus_has_no_units(tmp_path: Path) -> None:
    corpus = corpora.resolve(corpora.settings(corpora.write(tmp_path / "corpus.parquet", [])))
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

    def files(self: object, name: str, repo_type: str, revision: str) -> list[str]:
        assert (name, repo_type, revision) == ("org/web", "dataset", SHA)
        paths = (path for path in repository.rglob("*") if path.is_file())
        return [path.relative_to(repository).as_posix() for path in paths]

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", files)
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
    open_binary = open_file.open_binary

    def recording(url: str) -> IO[bytes]:
        opened.append(url)
        return open_binary(url)

    monkeypatch.setattr(parquet, "open_binary", recording)
    corpus = corpora.resolve(corpora.settings("org/web", corpus_revision="v1"))
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


def test_missing_hub_datasets_configurations_and_splits_are_named(hub: Path) -> None:
    with pytest.raises(ValueError, match=r"corpus 'org/other' .*cannot be resolved: 404"):
        corpora.resolve(corpora.settings("org/other"))
    with pytest.raises(ValueError, match=r"'org/web' .*sample-100BT.* not found"):
        corpora.resolve(
            corpora.settings("org/web", corpus_revision="v1", corpus_config="sample-100BT")
        )
    with pytest.raises(ValueError, match=r"no split 'dev'; it has test, train"):
        corpora.resolve(corpora.settings("org/web", corpus_revision="v1", corpus_split="dev"))


def test_patterns_choose_files_of_a_hub_dataset(hub: Path) -> None:
    def resolve(*patterns: str) -> Corpus:
        return corpora.resolve(
            corpora.settings("org/web", corpus_revision="v1", corpus_data_files=patterns)
        )

    corpus = resolve("held/*.parquet", "sample/*/001.parquet")
    spec = corpus.spec
    assert (spec.source, spec.revision, spec.config, spec.split) == ("org/web", SHA, "", "")
    assert spec.files == (("held/000.parquet", ""), ("sample/10BT/001.parquet", ""))
    with pytest.raises(ValueError, match=r"no file matches 'x/\*'; there are 4 files: README.md, "):
        resolve("held/*", "x/*")
    with pytest.raises(ValueError, match=r"files of more than one kind|unsupported kind of file"):
        resolve("*")
    with pytest.raises(ValueError, match="corpus_data_files: must be one pattern or more"):
        resolve()


@pytest.mark.parametrize("suffix", [".jsonl", ".txt"])
def test_lines_on_the_hub_are_refused_before_any_is_read(hub: Path, suffix: str) -> None:
    for path in list(hub.rglob("*.parquet")):
        path.unlink()
        corpora.write(path.with_suffix(suffix), TEXTS)
    expected = rf"'org/web': sample/10BT/000\{suffix} is .*hf download .* org/web .*Parquet"
    with pytest.raises(ValueError, match=expected):
        corpora.resolve(corpora.settings("org/web", corpus_revision="v1"))


def test_a_corpus_is_read_from_any_fsspec_file_system(tmp_path: Path) -> None:
    import fsspec

    content = corpora.write(tmp_path / "corpus.parquet", TEXTS).read_bytes()
    local = corpora.resolve(corpora.settings(tmp_path / "corpus.parquet"))
    remote = fsspec.filesystem("memory")
    remote.pipe_file("/corpus.parquet", content)
    file = DataFile("memory://corpus.parquet", "corpus.parquet")
    corpus = Corpus(local.spec, corpus_parts(local.spec, [file]))
    assert list(all_units(corpus)) == list(all_units(local))


def test_threads_may_read_units_concurrently(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_fineweb_parquet(tmp_path / "many" / f"{name}.parquet", tiny_texts(60, seed=ord(name)))
    corpus = corpora.resolve(corpora.settings(tmp_path / "many", documents_per_unit=7))
    alone = [corpus.read_unit(unit) for unit in range(20)]
    assert alone[17] is not None
    assert alone[18] is None
    order = [*range(20)] * 5
    random.Random(0).shuffle(order)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(corpus.read_unit, order)) == [alone[unit] for unit in order]
    corpus.close()
