"""The corpus: a name becomes files, files become units, units become documents.

In: the ``corpus*`` settings. Out: a ``CorpusSpec`` that pins every byte of it, and the documents of
any unit by number. Called by ``run``. A unit is a run of ``documents_per_unit`` documents of one
file (the last of a file may be shorter); units are numbered across the files in their order, so
what a unit holds depends on nothing but the spec.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cache_format.spec import CorpusSpec
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.corpus.corpus_files import (
    KIND_OF_SUFFIX,
    BadDocument,
    DocumentFile,
    FileKind,
    LineDocuments,
    LineIndex,
    ParquetDocuments,
    index_lines,
    parse_json_line,
    parse_text_line,
    sha256_of,
)
from stages.cache_teacher.corpus.hub import split_files


@dataclass(frozen=True)
class CorpusFile:
    """One file: ``url`` is opened, ``name`` is shown and stands in the spec."""

    url: str
    name: str
    kind: FileKind
    sha256: str = ""
    index: LineIndex | None = None


@dataclass(frozen=True)
class UnitDocuments:
    """The documents of one unit that are text; ``position`` tells a reader where they come from."""

    texts: list[str]
    num_skipped: int
    position: str


class Corpus:
    """Documents by unit, for any number of threads. In order they cost one pass over each file."""

    def __init__(self, spec: CorpusSpec, files: Sequence[CorpusFile]) -> None:
        self.spec = spec
        self._files = files
        self._unit_ends: list[int] = []  # per file opened so far, the first unit of the next file
        self._open: tuple[int, DocumentFile] | None = None
        self._lock = threading.Lock()

    def has_unit(self, unit: int) -> bool:
        """Whether the corpus reaches ``unit``; opens files, and so checks them, only that far."""
        with self._lock:
            return self._file_of(unit) is not None

    def read_unit(self, unit: int) -> UnitDocuments | None:
        """Documents of ``unit``; None where the corpus has ended.

        Raises ValueError naming file and document where one is not text, unless those are skipped.
        """
        with self._lock:
            return self._read_unit(unit)

    def close(self) -> None:
        """Close the file that is open."""
        with self._lock:
            self._close()

    def _read_unit(self, unit: int) -> UnitDocuments | None:
        number = self._file_of(unit)
        if number is None:
            return None
        file = self._files[number]
        first_unit = self._unit_ends[number - 1] if number else 0
        start = (unit - first_unit) * self.spec.documents_per_unit
        opened = self._opened(number)
        documents = opened.read(start, self.spec.documents_per_unit)
        texts = []
        for place, document in enumerate(documents, start):
            if isinstance(document, BadDocument):
                self._refuse(file, place, document)
            elif document.strip():
                texts.append(document)
        position = (
            f"{file.name} (file {number + 1} of {len(self._files)}), "
            f"documents {start:,}-{start + len(documents) - 1:,} of {opened.num_documents:,}"
        )
        return UnitDocuments(texts, len(documents) - len(texts), position)

    def _close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _file_of(self, unit: int) -> int | None:
        """Number of the file that holds ``unit``; opens files only as far as needed."""
        while not self._unit_ends or unit >= self._unit_ends[-1]:
            number = len(self._unit_ends)
            if number == len(self._files):
                return None
            num_units = -(-self._opened(number).num_documents // self.spec.documents_per_unit)
            self._unit_ends.append((self._unit_ends[-1] if number else 0) + num_units)
        return next(number for number, end in enumerate(self._unit_ends) if unit < end)

    def _opened(self, number: int) -> DocumentFile:
        if self._open is None or self._open[0] != number:
            self._close()
            self._open = (number, _open_file(self._files[number], self.spec))
        return self._open[1]

    def _refuse(self, file: CorpusFile, place: int, document: BadDocument) -> None:
        if self.spec.on_bad_document == "error":
            where = "line" if file.kind != "parquet" else "document"
            raise ValueError(
                f"{file.name}, {where} {place + (file.kind != 'parquet'):,}: {document.reason}. "
                'Repair it, or set on_bad_document = "skip" to leave such documents out.'
            )


def _open_file(file: CorpusFile, spec: CorpusSpec) -> DocumentFile:
    if file.kind == "parquet":
        return ParquetDocuments(file.url, file.name, spec.text_column)
    assert file.index is not None, "lines are found in files that were read to be pinned"
    if file.kind == "text":
        return LineDocuments(file.url, file.index, parse_text_line)
    return LineDocuments(file.url, file.index, partial(parse_json_line, text_key=spec.text_column))


def resolve_corpus(config: CacheTeacherConfig) -> Corpus:
    """Find the corpus's files and pin them: local ones by hash, the Hub's by commit.

    Where local files lie is no part of the spec, so that a cache survives moving its corpus.

    Raises ValueError where there is no such corpus, no such split, or a file of unknown kind; on
    the Hub, of any but Parquet.
    """
    if _is_local(config.corpus):
        source, revision, files = "local", "", _local_files(config)
    else:
        source = config.corpus
        revision, urls = split_files(config)
        files = [CorpusFile(url, url.split(f"@{revision}/")[-1], _kind_of(url)) for url in urls]
        _refuse_remote_lines(config, files)
    spec = CorpusSpec(
        source=source,
        config=config.corpus_config if revision else "",
        split=config.corpus_split if revision else "",
        revision=revision,
        files=tuple((file.name, file.sha256) for file in files),
        text_column=config.text_column,
        on_bad_document=config.on_bad_document,
        documents_per_unit=config.documents_per_unit,
    )
    return Corpus(spec, files)


def check_local_corpus(config: CacheTeacherConfig) -> None:
    """Raise ValueError where a corpus of this machine is not there or of a kind that is not read.

    No file is opened. A corpus on the Hub is not looked for.
    """
    if _is_local(config.corpus):
        _local_kinds(config.corpus)


def _is_local(corpus: str) -> bool:
    if not corpus:
        raise ValueError(
            f"corpus: not set: expected a {_SUFFIXES} file, a directory of them, or a Hub dataset"
        )
    path = Path(corpus).expanduser()
    looks_local = corpus.startswith(("/", "./", "../", "~")) or path.suffix in KIND_OF_SUFFIX
    if looks_local and not path.exists():
        raise ValueError(f"corpus {corpus!r}: no such file or directory")
    return looks_local or path.exists()


def _refuse_remote_lines(config: CacheTeacherConfig, files: Sequence[CorpusFile]) -> None:
    """Nobody knows where the lines of a file begin who has not read all of it."""
    lines = next((file for file in files if file.kind != "parquet"), None)
    if lines is not None:
        raise ValueError(
            f"corpus {config.corpus!r}: {lines.name} is {lines.kind}, of which every run would "
            "have to fetch all to find one unit; from the Hub, only Parquet is read. Download the "
            f"files (hf download --repo-type dataset {config.corpus} --local-dir corpus) and set "
            "corpus to their directory, or convert them to Parquet."
        )


def _local_files(config: CacheTeacherConfig) -> list[CorpusFile]:
    kinds = _local_kinds(config.corpus)
    return [_pinned(path, kind, config.documents_per_unit) for path, kind in kinds.items()]


def _local_kinds(corpus: str) -> dict[Path, FileKind]:
    """The files of a local corpus, in order, and the kind that all of them are."""
    root = Path(corpus).expanduser().resolve()
    paths = [root]
    if root.is_dir():
        paths = sorted(path for path in root.iterdir() if path.is_file() and _holds_data(path.name))
    if not paths:
        raise ValueError(f"corpus {root}: the directory holds no {_SUFFIXES} file")
    kinds = {path: _kind_of(str(path)) for path in paths}
    if len(set(kinds.values())) > 1:
        first, other = paths[0], next(p for p in paths if kinds[p] != kinds[paths[0]])
        raise ValueError(
            f"corpus {root}: files of more than one kind ({first.name}, {other.name}). "
            "Put each kind into a directory of its own."
        )
    return kinds


def _pinned(path: Path, kind: FileKind, documents_per_unit: int) -> CorpusFile:
    if kind == "parquet":
        return CorpusFile(str(path), path.name, kind, sha256_of(str(path)))
    index = index_lines(str(path), documents_per_unit)
    return CorpusFile(str(path), path.name, kind, index.sha256, index)


_SUFFIXES = "/".join(KIND_OF_SUFFIX)


def _holds_data(name: str) -> bool:
    """Hidden files, markers such as _SUCCESS and a README beside the data are no documents."""
    return not name.startswith((".", "_")) and not name.lower().endswith(".md")


def _kind_of(url: str) -> FileKind:
    suffix = Path(url).suffix
    if suffix not in KIND_OF_SUFFIX:
        raise ValueError(
            f"{url}: unsupported kind of file {suffix!r}; a corpus is made of {_SUFFIXES} files"
        )
    return KIND_OF_SUFFIX[suffix]
