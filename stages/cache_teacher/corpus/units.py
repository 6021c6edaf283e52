"""A corpus: a name becomes files, files become units, units become documents.

A unit is a run of ``documents_per_unit`` documents of one file (the last of a file may be shorter);
units are numbered across the files in their order, so what a unit holds depends on nothing but the
``CorpusSpec``, which pins every byte of the corpus. Where a cache has several corpora, each has
numbers of its own here (see ``corpora``).
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from cache_format.metadata.spec_parts.corpus import CorpusSpec
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.corpus.formats.document_file import (
    BadDocument,
    Conversation,
    DataFile,
    DocumentFile,
)
from stages.cache_teacher.corpus.formats.plain_text import open_whole_files
from stages.cache_teacher.corpus.formats.registry import PARQUET, TEXT, format_of
from stages.cache_teacher.corpus.hub import split_files
from stages.cache_teacher.corpus.local_files import (
    find_local_files,
    find_local_paths,
    is_local,
    require_one_format,
)

MAX_UNIT_CHARS = 1 << 30
"""A unit is read, tokenized and cached as a whole; with more text it would not fit in memory."""


@dataclass(frozen=True)
class CorpusPart:
    """What units do not span: a file, or all files where each is one document."""

    name: str
    open: Callable[[], DocumentFile[Any]]


def _nothing(place: str, document: BadDocument) -> None:
    """For documents that nothing is wrong with."""


@dataclass(frozen=True)
class UnitDocuments:
    """The documents of one unit that are text, or that are conversations; ``position`` tells a
    reader where they come from."""

    texts: list[str]
    num_skipped: int
    position: str
    conversations: list[Conversation] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    """Where each conversation is, such as ``a.jsonl, line 3``."""
    refuse: Callable[[str, BadDocument], None] = field(default=_nothing, compare=False)
    """Raise ValueError for what is at that place, unless bad documents are skipped."""


class Corpus:
    """Documents by unit, for any number of threads. In order they cost one pass over each file."""

    def __init__(self, spec: CorpusSpec, parts: Sequence[CorpusPart]) -> None:
        self.spec = spec
        self._parts = parts
        self._unit_ends: list[int] = []  # per part opened so far, the first unit of the next part
        self._open: tuple[int, DocumentFile[Any]] | None = None
        self._lock = threading.Lock()

    def has_unit(self, unit: int) -> bool:
        """Whether the corpus reaches ``unit``; opens files, and so checks them, only that far."""
        with self._lock:
            return self._part_of(unit) is not None

    def likely_num_units(self) -> int:
        """Units of all files, if those that were not opened yet are like those that were."""
        with self._lock:
            num_opened = len(self._unit_ends)
            return self._unit_ends[-1] * len(self._parts) // num_opened if num_opened else 0

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
        number = self._part_of(unit)
        if number is None:
            return None
        first_unit = self._unit_ends[number - 1] if number else 0
        start = (unit - first_unit) * self.spec.documents_per_unit
        opened = self._opened(number)
        texts: list[str] = []
        conversations: list[Conversation] = []
        places: list[str] = []
        num_read = num_chars = 0
        for document in opened.read(start, self.spec.documents_per_unit):
            if isinstance(document, BadDocument):
                self._refuse(opened.place(start + num_read), document)
            elif isinstance(document, Conversation):
                if document.messages:
                    conversations.append(document)
                    places.append(opened.place(start + num_read))
                    num_chars += document.num_chars
            elif document.strip():
                texts.append(document)
                num_chars += len(document)
            num_read += 1
            if num_chars > MAX_UNIT_CHARS:
                raise ValueError(
                    f"{opened.place(start + num_read - 1)}: unit {unit} is longer than "
                    f"{MAX_UNIT_CHARS >> 20} Mi characters. Lower documents_per_unit."
                )
        if num_read != min(self.spec.documents_per_unit, opened.num_documents - start):
            raise ValueError(
                f"{opened.place(start + num_read)}: missing, though the file had "
                f"{opened.num_documents:,} documents when it was opened. Restore the file."
            )
        position = (
            f"{self._parts[number].name} (file {number + 1} of {len(self._parts)}), "
            f"documents {start:,}-{start + num_read - 1:,} of {opened.num_documents:,}"
        )
        return UnitDocuments(
            texts=texts,
            num_skipped=num_read - len(texts) - len(conversations),
            position=position,
            conversations=conversations,
            places=places,
            refuse=self._refuse,
        )

    def _close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _part_of(self, unit: int) -> int | None:
        """Number of the part that holds ``unit``; opens files only as far as needed."""
        while not self._unit_ends or unit >= self._unit_ends[-1]:
            number = len(self._unit_ends)
            if number == len(self._parts):
                return None
            num_units = -(-self._opened(number).num_documents // self.spec.documents_per_unit)
            self._unit_ends.append((self._unit_ends[-1] if number else 0) + num_units)
        return next(number for number, end in enumerate(self._unit_ends) if unit < end)

    def _opened(self, number: int) -> DocumentFile[Any]:
        if self._open is None or self._open[0] != number:
            self._close()
            self._open = (number, self._parts[number].open())
        return self._open[1]

    def _refuse(self, place: str, document: BadDocument) -> None:
        if self.spec.on_bad_document == "error":
            raise ValueError(
                f"{place}: {document.reason}. "
                'Repair it, or set on_bad_document = "skip" to skip such documents.'
            )


def resolve_corpus(config: CacheTeacherConfig) -> Corpus:
    """Find the files of the one corpus of ``config`` and pin them: local ones by hash, the Hub's by
    commit.

    Where local files lie is no part of the spec, so that a cache survives moving its corpus.

    Raises ValueError where there is no such corpus, no such split, or a file of unknown kind; on
    the Hub, of any but Parquet.
    """
    revision, is_split = "", True
    if is_local(config.corpus):
        split, files = find_local_files(
            config.corpus, config.corpus_split, config.corpus_data_files
        )
    else:
        is_split = config.corpus_data_files is None
        split = config.corpus_split if is_split else ""
        revision, urls = split_files(config)
        files = [DataFile(url, url.split(f"@{revision}/")[-1]) for url in urls]
        _refuse_remote_streams(config, files)
    spec = CorpusSpec(
        source=config.corpus if revision else "local",
        config=config.corpus_config if revision and is_split else "",
        split=split,
        revision=revision,
        files=tuple((file.name, file.sha256) for file in files),
        text_column=config.text_column,
        on_bad_document=config.on_bad_document,
        documents_per_unit=config.documents_per_unit,
        text_documents=_text_documents(config, files),
        chat=config.chat,
    )
    _refuse_without_conversations(config, files[0].name)
    return Corpus(spec, corpus_parts(spec, files))


def check_local_corpora(config: CacheTeacherConfig) -> None:
    """Raise ValueError where a corpus of this machine is not there or of a kind that is not read.

    None of the files is opened. A corpus on the Hub is not looked for.
    """
    for settings in config.each_corpus.values():
        if is_local(settings.corpus):
            _, paths = find_local_paths(
                settings.corpus, settings.corpus_split, settings.corpus_data_files
            )
            _refuse_without_conversations(settings, paths[0].name)


def corpus_parts(spec: CorpusSpec, files: Sequence[DataFile]) -> list[CorpusPart]:
    """A part for each file, or one for all where a document is a whole file."""
    if spec.text_documents == "file":
        name = f"{files[0].name} … {files[-1].name}" if len(files) > 1 else files[0].name
        return [CorpusPart(name, lambda: open_whole_files(files))]
    return [CorpusPart(file.name, partial(format_of(file.name).open, file, spec)) for file in files]


def _refuse_without_conversations(config: CacheTeacherConfig, name: str) -> None:
    """Raise ValueError where conversations are asked for of a file that cannot have any."""
    found = format_of(name)
    if config.chat is not None and not found.has_conversations:
        raise ValueError(
            f"{name}: {found.name} holds no conversations, which are read from "
            f"{', '.join(map(repr, config.chat.columns))}. Convert it to JSON lines or Parquet, or "
            "leave out messages_column, prompt_column and completion_column to read plain text."
        )


def _text_documents(config: CacheTeacherConfig, files: Sequence[DataFile]) -> str | None:
    """What the spec says of plain text; nothing where a document is a line, as it always was."""
    is_line = config.text_documents == "line" or format_of(files[0].name) is not TEXT
    return None if is_line else config.text_documents


def _refuse_remote_streams(config: CacheTeacherConfig, files: Sequence[DataFile]) -> None:
    """Nobody knows where the lines of a file begin who has not read all of it."""
    require_one_format(f"corpus {config.corpus!r}", [file.name for file in files])
    first = format_of(files[0].name)
    if first is not PARQUET:
        raise ValueError(
            f"corpus {config.corpus!r}: {files[0].name} is {first.name}. From the Hub, only "
            "Parquet is read: other formats would have to be downloaded whole for each unit. "
            f"Download the files (hf download --repo-type dataset {config.corpus} --local-dir "
            "corpus) and set corpus to their directory, or convert them to Parquet."
        )
