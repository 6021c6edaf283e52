"""What the tests of a whole run share: one teacher, one corpus, any number of runs over them."""

from pathlib import Path
from typing import Any

import pytest

import cache_format
from cache_format.codec.row_codec import Row
from cache_format.metadata.manifest import Manifest
from cache_format.reader import Cache
from stages.cache_teacher.config import ALL_UNITS
from stages.cache_teacher.corpus.unit_reader import PreparedUnit, UnitReader
from stages.cache_teacher.reporting.progress import CacheProgress
from stages.cache_teacher.run import cache_teacher
from stages.cache_teacher.teacher import lazy_teacher, teacher
from tests.support.tiny import tiny_cache_config, tiny_texts, write_fineweb_parquet

TEXTS = tiny_texts(80)


class Bench:
    """One teacher, one corpus, and any number of runs over them."""

    def __init__(self, teacher: Path, root: Path) -> None:
        self.teacher, self.root = teacher, root
        self.corpus = write_fineweb_parquet(root / "corpus.parquet", TEXTS)
        self.reports: list[CacheProgress] = []

    def run(self, out: str = "cache", **changes: Any) -> Manifest:
        units, engine = changes.pop("units", ALL_UNITS), changes.pop("engine", None)
        config = tiny_cache_config(changes.pop("teacher", self.teacher), self.corpus, **changes)
        self.reports = []
        return cache_teacher(
            config,
            self.root / out,
            recipe_toml="# a recipe\n",
            report=self.reports.append,
            units=units,
            engine=engine,
        )

    def open(self, out: str = "cache") -> Cache:
        return cache_format.open(self.root / out)


def rows_by_unit(cache: Cache) -> list[tuple[int, Row]]:
    pairs = [*cache.iter_rows("train"), *cache.iter_rows("validation")]
    return sorted(pairs, key=lambda pair: pair[0])  # stable: rows of a unit keep their order


def shard_bytes(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "shards").iterdir()}


class Watch:
    """Counts the documents tokenised and the teachers loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.documents = self.teachers = 0
        read, teacher_class = UnitReader.read, teacher.Teacher

        def read_counted(reader: UnitReader, unit: int) -> PreparedUnit | None:
            prepared = read(reader, unit)
            self.documents += 0 if prepared is None else prepared.num_documents
            return prepared

        def teacher_counted(*arguments: Any) -> Any:
            self.teachers += 1
            return teacher_class(*arguments)

        monkeypatch.setattr(UnitReader, "read", read_counted)
        monkeypatch.setattr(lazy_teacher, "Teacher", teacher_counted)

    def since(self) -> tuple[int, int]:
        """Documents and teachers since the last call."""
        counts = self.documents, self.teachers
        self.documents = self.teachers = 0
        return counts
