"""What is said at the end of stage one."""

from dataclasses import replace
from pathlib import Path

import cache_format
from cache_format.metadata.manifest import Manifest
from cache_format.metadata.spec import CacheSpec
from pipeline.reports.cache_report import Outcome, cached_text
from tests.support.progress import caching
from tests.support.sample_cache import sample_spec, write_sample_cache


def manifest_of(path: Path, spec: CacheSpec) -> Manifest:
    write_sample_cache(path, spec)
    return cache_format.open(path).manifest


def report_text(manifest: Manifest) -> str:
    outcome = Outcome(manifest=manifest, progress=caching(0, "done"))
    return cached_text(outcome, "out", "RECIPE")


def test_the_report_shows_the_validation_share_and_the_next_command(tmp_path: Path) -> None:
    spec = sample_spec(validation_split="rows", validation_every=5)
    text = report_text(manifest_of(tmp_path, spec))
    assert "120 tokens in 4 shards. Validation is 20.0% of the rows.\nNext:" in text
    assert "train-student --recipe RECIPE --cache out" in text


def test_too_large_a_validation_share_is_warned_of(tmp_path: Path) -> None:
    text = report_text(manifest_of(tmp_path, sample_spec()))
    assert "Validation is 50.0% of the rows. That is much more than 1 in 3" in text
    assert 'cache_teacher.validation_split = "rows"' in text
    assert "pipeline train-student" in text


def test_a_cache_of_validation_rows_alone_is_reported_as_untrainable(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, sample_spec())
    text = report_text(replace(manifest, shards=manifest.shards[:1]))
    assert "Validation is 100.0% of the rows. That leaves nothing to train on" in text
    assert "train-student" not in text
