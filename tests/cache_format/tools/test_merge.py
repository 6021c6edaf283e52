"""``merge``: parts become the whole, byte by byte, and what is missing is named."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cache_format
from cache_format.errors import (
    CacheError,
    CorruptFileError,
    ForeignDirectoryError,
    IncompleteCacheError,
    MissingFileError,
    SpecMismatchError,
)
from cache_format.metadata.recipe_file import seal_recipe
from cache_format.tools.merge import Merged, merge
from cache_format.tools.verify import verify
from cache_format.writer import CacheWriter
from tests.support import ROOT
from tests.support.sample_cache import (
    build_teacher,
    contents,
    fill,
    sample_row,
    sample_shared,
    sample_spec,
    shard_path,
    write_sample_cache,
)


def part(path: Path, units: list[int], *, num_tokens: int = 120, teacher: bool = True) -> Path:
    """A cache of ``units`` that is not complete."""
    writer = CacheWriter.create_or_open(path, sample_spec(), sample_shared())
    if teacher:
        writer.write_attachments(build_teacher)
    fill(writer, units)
    writer.publish_manifest(num_tokens, complete=False)
    return path


def merged(out: Path | str, *inputs: Path | str, **options: Any) -> Merged:
    caches = [cache_format.open(path, allow_incomplete=True) for path in inputs]
    return merge(caches, out, **options)


def test_merged_parts_equal_the_whole_cache(root: Path, tmp_path: Path) -> None:
    a, b = part(tmp_path / "a", [0, 1]), part(tmp_path / "b", [2, 3], teacher=False)
    (b / "recipe.toml").write_bytes(seal_recipe("# b\n", sample_spec().cache_id))
    before = contents(a), contents(b)
    seen: list[tuple[int, int]] = []
    result = merged(tmp_path / "out", b, a, num_threads=2, report=lambda *now: seen.append(now))
    assert result == Merged(
        num_units=4,
        num_tokens=120,
        num_tokens_requested=120,
        is_complete=True,
        differing_units=(),
        missing_units=(),
    )
    found = contents(tmp_path / "out")
    assert found.pop("recipe.toml") == contents(b)["recipe.toml"]
    assert found == contents(root)
    assert verify(cache_format.open(tmp_path / "out")) == []
    assert (contents(a), contents(b)) == before
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] > 0


def test_merged_shards_are_hard_links_where_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = part(tmp_path / "a", [0, 1])
    merged(tmp_path / "linked", a)
    assert shard_path(tmp_path / "linked", 0).samefile(shard_path(a, 0))

    link = os.link

    def no_links_to_shards(source: str, target: Path) -> None:
        if target.parent.name == "shards":
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(source, target)

    monkeypatch.setattr(os, "link", no_links_to_shards)
    merged(tmp_path / "copied", a)
    assert not shard_path(tmp_path / "copied", 0).samefile(shard_path(a, 0))
    assert contents(tmp_path / "copied") == contents(tmp_path / "linked")


def test_caches_are_merged_into_and_from_urls(root: Path, tmp_path: Path) -> None:
    place = f"memory://{tmp_path.name}/cache"
    a, b = part(tmp_path / "a", [0, 1]), part(tmp_path / "b", [2, 3])
    assert not merged(place, a).is_complete
    assert merged(place, b, a).is_complete
    assert verify(cache_format.open(place)) == []
    assert merged(tmp_path / "out", place).is_complete
    assert contents(tmp_path / "out") == contents(root)


def test_a_merge_reports_missing_units(tmp_path: Path) -> None:
    a, b = part(tmp_path / "a", [0]), part(tmp_path / "b", [3])
    result = merged(tmp_path / "out", a, b)
    assert (result.is_complete, result.missing_units) == (False, (range(1, 3),))
    with pytest.raises(IncompleteCacheError):
        cache_format.open(tmp_path / "out")
    result = merged(tmp_path / "out", part(tmp_path / "c", [1, 2]))
    assert (result.is_complete, result.missing_units) == (True, ())
    assert verify(cache_format.open(tmp_path / "out")) == []


def test_a_merge_reports_a_missing_first_unit(tmp_path: Path) -> None:
    result = merged(tmp_path / "out", part(tmp_path / "a", [1, 3], num_tokens=1))
    assert (result.is_complete, result.missing_units) == (False, (range(0, 1), range(2, 3)))


def test_a_merge_below_the_token_budget_is_not_complete(tmp_path: Path) -> None:
    a, b = part(tmp_path / "a", [0, 1]), part(tmp_path / "b", [2, 3], num_tokens=121)
    result = merged(tmp_path / "out", a, b)
    assert (result.is_complete, result.missing_units) == (False, ())
    assert result.num_tokens_requested == 121


def test_the_end_of_the_corpus_is_known_from_a_complete_cache(root: Path, tmp_path: Path) -> None:
    """It had asked for more and was complete nevertheless, so there is no more."""
    writer = CacheWriter.create_or_open(root, sample_spec(), sample_shared())
    writer.publish_manifest(500, complete=True)
    shutil.copytree(root, tmp_path / "out")
    result = merged(tmp_path / "out", root, part(tmp_path / "a", [0], num_tokens=600))
    assert result.is_complete
    assert cache_format.open(tmp_path / "out").manifest.num_tokens_requested == 600


def test_merging_into_an_existing_cache_adds_units(tmp_path: Path) -> None:
    """It may be one of the inputs; what is complete stays so until there is more."""
    out = part(tmp_path / "out", [0, 1])
    CacheWriter.create_or_open(out, sample_spec(), sample_shared()).publish_manifest(
        90, complete=True
    )
    more = part(tmp_path / "more", [3], num_tokens=120)
    result = merged(out, out, more)
    assert (result.is_complete, result.missing_units) == (False, (range(2, 3),))
    assert len(cache_format.open(out).manifest.shards) == 2
    assert merged(out, part(tmp_path / "last", [2])).is_complete
    assert len(cache_format.open(out).manifest.shards) == 4
    before = contents(out)
    assert merged(out, out).is_complete
    assert contents(out) == before


def test_a_truncated_shard_of_the_target_is_replaced_from_an_input(
    root: Path, tmp_path: Path
) -> None:
    wanted = contents(root)
    whole = shutil.copytree(root, tmp_path / "whole")
    path = shard_path(root, 1)
    path.write_bytes(path.read_bytes()[:-1])
    shard_path(root, 3).unlink()
    left_out = merged(root, root)
    assert (left_out.damaged_units, left_out.missing_units) == ((1, 3), (range(1, 2),))
    mended = merged(root, root, whole)
    assert (mended.damaged_units, mended.is_complete) == ((1, 3), True)
    assert merged(root, root, whole).damaged_units == ()
    assert contents(root) == wanted


def test_of_two_different_units_the_first_is_taken(tmp_path: Path) -> None:
    a, b = part(tmp_path / "a", [0, 2, 3]), part(tmp_path / "b", [0])
    other = CacheWriter.create_or_open(b, sample_spec(), sample_shared())
    other.write_unit(1, [sample_row(5, sample_spec())], num_documents=1)
    c = part(tmp_path / "c", [0, 1])
    result = merged(tmp_path / "out", a, b, c)
    assert result.differing_units == (1,)
    assert shard_path(tmp_path / "out", 1).name == shard_path(b, 1).name
    assert merged(tmp_path / "out", c).differing_units == (1,)
    assert shard_path(tmp_path / "out", 1).name == shard_path(b, 1).name


def test_caches_of_another_spec_are_refused(root: Path, tmp_path: Path) -> None:
    write_sample_cache(tmp_path / "other", sample_spec(seed=8))
    with pytest.raises(SpecMismatchError, match="seed: expected 7, found 8"):
        merged(tmp_path / "out", root, tmp_path / "other")
    assert not (tmp_path / "out").exists()
    before = contents(tmp_path / "other")
    with pytest.raises(SpecMismatchError, match="seed: expected 8, found 7"):
        merged(tmp_path / "other", root)
    assert contents(tmp_path / "other") == before


def test_caches_with_files_of_another_teacher_are_refused(root: Path, tmp_path: Path) -> None:
    writer = CacheWriter.create_or_open(tmp_path / "other", sample_spec(), sample_shared())

    def build(directory: Path) -> None:
        (directory / "config.json").write_text("{}")

    writer.write_attachments(build)
    fill(writer, [1])
    writer.publish_manifest(120, complete=False)
    with pytest.raises(CacheError, match=r"config\.json, templates/chat\.jinja"):
        merged(tmp_path / "out", root, tmp_path / "other")
    assert not (tmp_path / "out").exists()


def test_merging_into_a_directory_of_other_files_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ForeignDirectoryError):
        merged(tmp_path, root)


@pytest.mark.parametrize("name", ["shards", "receipts", "teacher"])
def test_a_damaged_input_is_named(root: Path, tmp_path: Path, name: str) -> None:
    path = {
        "shards": shard_path(root, 1),
        "receipts": root / "receipts/00001.json",
        "teacher": root / "teacher/config.json",
    }[name]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CorruptFileError, match=path.name):
        merged(tmp_path / "out", root)
    assert not (tmp_path / "out/manifest.json").exists()
    assert not (tmp_path / "out/receipts/00001.json").exists()
    assert not list((tmp_path / "out/shards").glob("00001-*"))
    path.unlink()
    with pytest.raises(MissingFileError, match=path.name):
        merged(tmp_path / "out", root)
    path.write_bytes(whole)
    assert merged(tmp_path / "out", root).is_complete
    assert contents(tmp_path / "out") == contents(root)


@pytest.mark.parametrize("damage", ["flipped", "missing", "receipt"])
def test_an_error_names_the_unit_and_its_cache(tmp_path: Path, damage: str) -> None:
    a, b = part(tmp_path / "a", [0, 1]), part(tmp_path / "b", [2, 3])
    path = b / "receipts/00003.json" if damage == "receipt" else shard_path(b, 3)
    path.write_bytes(bytes(path.stat().st_size))
    if damage == "missing":
        path.unlink()
    kind = MissingFileError if damage == "missing" else CorruptFileError
    with pytest.raises(kind) as caught:
        merged(tmp_path / "out", a, b)
    message = str(caught.value)
    assert message.startswith(f"{b}: unit 3 is damaged and was not merged: {path}: ")
    assert f"Units merged so far are kept in {tmp_path / 'out'}. Delete " in message
    assert len(list((tmp_path / "out/receipts").glob("0*.json"))) == 3


def test_units_after_the_manifest_are_merged_too(tmp_path: Path) -> None:
    a = part(tmp_path / "a", [0, 1, 2])
    fill(CacheWriter.create_or_open(a, sample_spec(), sample_shared()), [3])
    assert merged(tmp_path / "out", a).is_complete


def test_a_merge_killed_before_writing_the_ranks_resumes(root: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    shutil.copy(root / "spec.json", tmp_path / "out")
    assert merged(tmp_path / "out", root).is_complete
    assert contents(tmp_path / "out") == contents(root)


def test_a_merge_killed_at_any_unit_resumes(root: Path, tmp_path: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
import cache_format
from cache_format.tools.merge import merge
from cache_format.writer import CacheWriter
left = int(sys.argv[3])
adopt = CacheWriter.adopt_unit
def killing(self, entry, receipt):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return adopt(self, entry, receipt)
CacheWriter.adopt_unit = killing
merge([cache_format.open(sys.argv[1])], Path(sys.argv[2]))
"""
    for num_units in (0, 2, 3):
        out = tmp_path / str(num_units)
        finished = subprocess.run(
            [sys.executable, "-c", program, str(root), str(out), str(num_units)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )
        assert finished.returncode == -signal.SIGKILL
        assert len(list(out.glob("receipts/0*.json"))) == num_units
        assert not (out / "manifest.json").exists()
        assert merged(out, root).is_complete
        assert contents(out) == contents(root)
