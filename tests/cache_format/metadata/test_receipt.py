"""Receipts that break a rule, are not the manifest's, or lead out of the cache."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cache_format
from cache_format.errors import CorruptFileError, MissingFileError
from cache_format.tools.merge import merge
from cache_format.tools.verify import verify
from tests.support.sample_cache import (
    reseal,
    sample_spec,
)

SPEC = sample_spec()


def _as_of_unit_2(fields: dict[str, Any]) -> None:
    fields.update(unit=2, file=f"shards/00002-{fields['sha256'][:16]}.arrow", num_rows=5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f["segments"].pop(), "its segments do not match its shard"),
        (lambda f: f["segments"][1].__setitem__(0, -1), "its segments do not match its shard"),
        (lambda f: f["segments"][1].__setitem__(1, 10**9), "its segments do not match its shard"),
        (lambda f: f.update(num_tokens=f["num_tokens"] - 1), "tokens are not . rows of"),
        (lambda f: f["segments"][1].pop(), r"\[1\]: expected tuple"),
        (lambda f: f.pop("segments"), "expected tuple"),
        (lambda f: f.update(cache_id="0" * 64), "belongs to another cache"),
        (_as_of_unit_2, "is of unit 2 .*expected unit 1"),
    ],
)
def test_a_sealed_receipt_that_breaks_a_rule_is_refused(
    root: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    """Sealed and named by the manifest, hence written so by a faulty program."""
    path = root / "receipts/00001.json"
    reseal(path, change)
    _adopt_receipts(root)
    with pytest.raises(CorruptFileError, match=message) as caught:
        cache_format.open(root).read_row("train", 0)
    assert str(path) in str(caught.value)
    assert [problem.path for problem in verify(cache_format.open(root))] == [path]


def test_a_receipt_other_than_the_manifest_names_is_refused(root: Path) -> None:
    path = root / "receipts/00001.json"
    reseal(path, lambda fields: fields.update(num_documents=99))
    with pytest.raises(CorruptFileError, match="not the file that the manifest names") as caught:
        cache_format.open(root).read_row("train", 0)
    assert str(path) in str(caught.value)
    assert [problem.path for problem in verify(cache_format.open(root))] == [path]


def test_a_missing_receipt_is_named_by_reader_and_verify(root: Path) -> None:
    path = root / "receipts/00001.json"
    path.unlink()
    with pytest.raises(MissingFileError, match=r"missing\. To make it again.*nothing else is"):
        cache_format.open(root).read_row("train", 0)
    assert [problem.path for problem in verify(cache_format.open(root))] == [path]


def _adopt_receipts(root: Path) -> None:
    def adopt(fields: dict[str, Any]) -> None:
        for shard in fields["shards"]:
            data = (root / f"receipts/{shard['unit']:05d}.json").read_bytes()
            shard["receipt_sha256"] = hashlib.sha256(data).hexdigest()

    reseal(root / "manifest.json", adopt)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../x", ".x", "a//b", ""])
def test_a_teacher_receipt_naming_paths_outside_the_cache_is_refused(root: Path, name: str) -> None:
    path = root / "receipts/teacher.json"
    reseal(path, lambda fields: fields["files"].update({name: [0, "0" * 64]}))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    reseal(root / "manifest.json", lambda fields: fields.update(teacher_receipt_sha256=digest))
    with pytest.raises(CorruptFileError, match=r"teacher\.json: .*cannot be a file of a cache"):
        cache_format.open(root).attachments()


def test_a_teacher_receipt_with_a_file_and_a_directory_of_one_name(root: Path) -> None:
    path = root / "receipts/teacher.json"
    empty = [0, hashlib.sha256(b"").hexdigest()]
    reseal(path, lambda fields: fields["files"].update({"x": empty, "x/y": empty}))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    reseal(root / "manifest.json", lambda fields: fields.update(teacher_receipt_sha256=digest))
    with pytest.raises(
        CorruptFileError, match=r"teacher\.json: files: 'x' is in the way of.*stage one again"
    ):
        cache_format.open(root).attachments()
    with pytest.raises(CorruptFileError, match="'x/y' needs a directory"):
        merge([cache_format.open(root)], root.parent / "out")
    assert not (root.parent / "out/manifest.json").exists()
    assert [problem.path for problem in verify(cache_format.open(root))] == [path]
