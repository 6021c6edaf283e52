"""The manifest: a function of its parts, and what is refused of it on opening."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cache_format
from cache_format.errors import CacheError, CorruptFileError, UnsupportedFormatError
from cache_format.manifest import fold
from tests.cache_format.sample_cache import (
    assert_decoded,
    reseal,
    sample_spec,
    unit_rows,
)

SPEC = sample_spec()


def test_the_manifest_does_not_depend_on_the_order_of_receipts(root: Path) -> None:
    entries = cache_format.open(root).manifest.shards
    manifests = [
        fold(SPEC, order, None, num_tokens_requested=1, complete=True).to_bytes()
        for order in (entries, entries[::-1])
    ]
    assert manifests[0] == manifests[1]


def test_another_major_version(root: Path) -> None:
    reseal(root / "manifest.json", lambda fields: fields.update(format_version="2.0"))
    with pytest.raises(UnsupportedFormatError, match=r"manifest\.json: format version 2\.0"):
        cache_format.open(root)


def test_a_later_minor_version_with_more_fields(root: Path) -> None:
    def later(fields: dict[str, Any]) -> None:
        fields.update(format_version="1.9", new_field=[1])
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
        (lambda f: _set_spec(f, new=1), UnsupportedFormatError, "spec .*: new: not a known field"),
        (lambda f: _set_spec(f, seed="x"), UnsupportedFormatError, "seed: expected int, found 'x'"),
        (lambda f: _set_spec(f, seed=8), CorruptFileError, "cache_id is .* but its spec has"),
        (lambda f: f.pop("shards"), CorruptFileError, "shards: missing"),
        (lambda f: f["shards"].reverse(), CorruptFileError, "units do not rise"),
        (lambda f: f["shards"].append(f["shards"][-1]), CorruptFileError, "units do not rise"),
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
def test_a_manifest_that_breaks_a_rule(
    root: Path,
    change: Callable[[dict[str, Any]], None],
    error: type[CacheError],
    message: str,
) -> None:
    reseal(root / "manifest.json", change)
    with pytest.raises(error, match=message) as caught:
        cache_format.open(root)
    assert str(root / "manifest.json") in str(caught.value)
