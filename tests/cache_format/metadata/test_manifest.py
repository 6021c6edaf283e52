"""The manifest: a function of its parts, and what is refused of it on opening."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cache_format
from cache_format.errors import CacheError, CorruptFileError, UnsupportedFormatError
from cache_format.metadata.layout import shard_file
from cache_format.metadata.manifest import fold, spec_bytes
from cache_format.writer import CacheWriter
from tests.support.sample_cache import (
    ROWS_OF_UNIT,
    assert_decoded,
    build_teacher,
    contents,
    fill,
    reseal,
    sample_shared,
    sample_spec,
    unit_rows,
)

SPEC = sample_spec()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(6)))
def test_the_manifest_does_not_depend_on_the_order_of_receipts(
    root: Path, order: list[int]
) -> None:
    template = cache_format.open(root).manifest
    first = template.shards[0]
    entries = [
        replace(first, unit=unit, file=shard_file(unit, first.sha256), split=SPEC.split_of(unit))
        for unit in range(6)
    ]
    manifests = [
        fold(SPEC, permuted, None, num_tokens_requested=1, complete=True).to_bytes()
        for permuted in (entries, iter([entries[number] for number in order]))
    ]
    assert manifests[0] == manifests[1]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10)
@given(order=st.permutations(sorted(ROWS_OF_UNIT)), teacher_first=st.booleans())
def test_the_manifest_does_not_depend_on_the_order_of_the_work(
    root: Path, order: list[int], teacher_first: bool
) -> None:
    """Nor on the order in which the file system lists what is there."""
    real = os.listdir
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "listdir", lambda path: sorted(real(path), reverse=True))
        patch.setattr(os, "fsync", lambda descriptor: None)  # slow, and beside the point
        writer = CacheWriter.create_or_open(Path(directory), SPEC, sample_shared())
        if teacher_first:
            writer.write_attachments(build_teacher)
        fill(writer, order)
        writer.write_attachments(build_teacher)
        writer.publish_manifest(num_tokens_requested=120, complete=True)
        assert contents(Path(directory)) == contents(root)


@pytest.mark.parametrize("version", ["1.2", "3.0"])
def test_a_manifest_of_another_major_version_is_refused(root: Path, version: str) -> None:
    reseal(root / "manifest.json", lambda fields: fields.update(format_version=version))
    with pytest.raises(UnsupportedFormatError, match=rf"manifest\.json: format version {version}"):
        cache_format.open(root)


def test_a_manifest_of_a_later_minor_version_with_more_fields_is_read(root: Path) -> None:
    def later(fields: dict[str, Any]) -> None:
        fields.update(format_version="2.9", new_field=[1])
        fields["shards"][1]["new_field"] = {"a": 1}
        fields["shards"][1]["statistics"]["new_field"] = 2

    reseal(root / "manifest.json", later)
    cache = cache_format.open(root)
    assert_decoded(cache.read_row("train", 0)[1], unit_rows(1, SPEC)[0], SPEC)


def _set_spec(fields: dict[str, Any], **changes: Any) -> None:
    fields["spec"] |= changes


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda f: _set_spec(f, new=1),
            UnsupportedFormatError,
            "does not support its spec: new: not a known field",
        ),
        (lambda f: _set_spec(f, seed="x"), UnsupportedFormatError, "seed: expected int, found 'x'"),
        (lambda f: _set_spec(f, seed=8), CorruptFileError, "cache_id is .* but its spec has"),
        (lambda f: f.pop("shards"), CorruptFileError, "shards: missing"),
        (lambda f: f["shards"].reverse(), CorruptFileError, "units are not in increasing order"),
        (
            lambda f: f["shards"].append(f["shards"][-1]),
            CorruptFileError,
            "units are not in increasing order",
        ),
        (lambda f: f["shards"][0].update(split="train"), CorruptFileError, "unit 0: wrong split"),
        (
            lambda f: f["shards"][0].update(split="test"),
            CorruptFileError,
            "expected .*found 'test'",
        ),
        (
            lambda f: f["shards"][0].update(file="../../secret.arrow"),
            CorruptFileError,
            "file: expected 'shards/00000-.*found '../../secret.arrow'",
        ),
        (lambda f: f["shards"][0].update(num_rows=-1), CorruptFileError, "must not be negative"),
        (lambda f: f["shards"][0].update(sha256="0"), CorruptFileError, "expected 64 hex digits"),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused_by_path(
    root: Path,
    change: Callable[[dict[str, Any]], None],
    error: type[CacheError],
    message: str,
) -> None:
    reseal(root / "manifest.json", change)
    with pytest.raises(error, match=message) as caught:
        cache_format.open(root)
    assert str(root / "manifest.json") in str(caught.value)


def test_a_manifest_that_could_not_be_read_back_is_not_written(root: Path) -> None:
    manifest = cache_format.open(root).manifest
    with pytest.raises(ValueError, match=r"^num_tokens_requested: must be an integer of 64 bits"):
        replace(manifest, num_tokens_requested=2**63).to_bytes()
    with pytest.raises(ValueError, match=r"^spec\.validation_every: must be an integer of 64 bits"):
        spec_bytes(replace(SPEC, validation_every=2**63))
