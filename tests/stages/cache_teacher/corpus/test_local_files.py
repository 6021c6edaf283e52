"""What is no corpus says so, and what would be one."""

from pathlib import Path

import pytest

from stages.cache_teacher.corpus import units as corpus_module
from stages.cache_teacher.corpus.units import check_local_corpora
from tests.support.corpora import read_all, resolve, settings, write
from tests.support.tiny import tiny_texts

TEXTS = tiny_texts(12)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (
            ["a.parquet", "b.jsonl"],
            r"more than one kind \(a\.parquet is Parquet, b\.jsonl JSON lines",
        ),
        (["a.jsonl", "b.jsonl.xz"], r"b\.jsonl\.xz: unsupported kind of file '\.jsonl\.xz'; .*csv"),
        (["a.gz"], r"a\.gz: unsupported kind of file '\.gz'"),
        (["a.parquet.gz"], r"a\.parquet\.gz: unsupported kind of file"),
        (["a"], r"a: unsupported kind of file ''"),
        ([], r"the directory itself holds no file .* \.parquet, \.jsonl,.*\.gz.*save_to_disk"),
        (["below/a.txt"], r"the directory itself holds no file"),
        (["README.md", "_SUCCESS", ".hidden"], r"the directory itself holds no file"),
    ],
)
def test_directories_that_are_no_corpus_are_refused(
    tmp_path: Path, names: list[str], problem: str
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=problem):
        read_all(tmp_path)
    with pytest.raises(ValueError, match=problem):
        check_local_corpora(settings(tmp_path))


def test_a_corpus_is_checked_without_reading_it(tmp_path: Path) -> None:
    (tmp_path / "damaged.parquet").write_bytes(b"")
    check_local_corpora(settings(tmp_path))
    check_local_corpora(settings("org/somewhere-on-the-hub"))
    with pytest.raises(ValueError, match=r"corpus: not set: expected .*\.jsonl"):
        check_local_corpora(settings(""))


def test_compressed_and_plain_files_of_one_kind_may_be_mixed(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", TEXTS[:4])
    write(tmp_path / "b.json.gz", TEXTS[4:8])
    write(tmp_path / "c.ndjson.zst", TEXTS[8:])
    assert read_all(tmp_path, documents_per_unit=3) == (TEXTS, 0)


@pytest.mark.parametrize("name", ["missing.parquet", "missing.csv.gz", "missing/", "missing"])
def test_a_missing_path_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="no such file or directory"):
        read_all(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.parquet", "a.arrow", "a.csv"])
def test_an_empty_file_has_no_documents(tmp_path: Path, name: str) -> None:
    if name in ("a.jsonl", "a.txt"):
        (tmp_path / name).write_bytes(b"")
    else:
        write(tmp_path / name, [])
    assert read_all(tmp_path / name) == ([], 0)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv", "a.arrow"])
def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, TEXTS)
    corpus = resolve(settings(tmp_path / name, documents_per_unit=4))
    assert corpus.has_unit(2)
    write(tmp_path / name, TEXTS[:10])
    with pytest.raises(ValueError, match=rf"{name}, .* 1[01]: missing, .* 12 documents"):
        corpus.read_unit(2)


def test_a_unit_too_large_for_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_module, "MAX_UNIT_CHARS", 30)
    write(tmp_path / "a.jsonl", ["x" * 10] * 4)
    assert read_all(tmp_path / "a.jsonl", documents_per_unit=3) == (["x" * 10] * 4, 0)
    with pytest.raises(ValueError, match=r"a\.jsonl, line 4: unit 0 .*Lower documents_per_unit"):
        read_all(tmp_path / "a.jsonl", documents_per_unit=4)


def test_patterns_choose_files_below_a_directory(tmp_path: Path) -> None:
    write(tmp_path / "en/2.jsonl.zst", TEXTS[:5])
    write(tmp_path / "en/1.jsonl.gz", TEXTS[5:9])
    write(tmp_path / "de/1.jsonl.gz", TEXTS[9:])
    write(tmp_path / "de/1.csv", TEXTS)
    (tmp_path / "README.md").write_text("not a document")
    english = settings(tmp_path, corpus_data_files=("en/*",))
    assert read_all(tmp_path, corpus_data_files=("en/*",)) == ([*TEXTS[5:9], *TEXTS[:5]], 0)
    names = [name for name, _ in resolve(english).spec.files]
    assert names == ["en/1.jsonl.gz", "en/2.jsonl.zst"]
    check_local_corpora(english)
    with pytest.raises(ValueError, match="files of more than one kind"):
        check_local_corpora(settings(tmp_path, corpus_data_files=("de/*",)))
    with pytest.raises(ValueError, match=r"no file matches 'fr/\*'; there are 5 files: README.md"):
        check_local_corpora(settings(tmp_path, corpus_data_files=("fr/*",)))
    with pytest.raises(ValueError, match="is a file, so corpus_data_files has nothing"):
        check_local_corpora(settings(tmp_path / "de/1.csv", corpus_data_files=("*",)))
