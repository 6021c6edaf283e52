"""What is durable before what: checked on the calls of a whole run, in the order they were made."""

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.faults import Call, Disk
from tests.support.sample_cache import (
    pca_sketch,
    sample_spec,
    shard_path,
    write_sample_cache,
)

_STRACE = ["strace", "-f", "-y", "-e", "trace=file,desc"]
_SYSTEM_CALLS = {"openat": "create", "renameat": "rename", "renameat2": "rename"}


def assert_order(calls: list[Call]) -> list[Path]:
    """Replay ``calls``: nothing is named before it is durable; returns what was named, in order.

    A name is durable once its directory has been fsynced, and until then no other name is given:
    so a shard's name outlives a power cut if its receipt's does, and a receipt's if the manifest's.
    """
    unwritten: set[Path] = set()  # files and directories with changes that were not fsynced
    undurable: set[Path] = set()
    named: list[Path] = []
    for name, path, target in calls:
        if name in {"create", "write", "fchmod", "truncate"}:
            assert ".tmp-" in str(path), f"{path} is written in place"
            unwritten |= {path, path.parent} if name == "create" else {path}
        elif name == "mkdir" and ".tmp-" in str(path):
            unwritten |= {path, path.parent}
        elif name == "fsync":
            unwritten.discard(path)
            undurable -= {file for file in undurable if file.parent == path}
        elif name in {"link", "rename", "replace", "mkdir"} and ".tmp-" not in str(target):
            assert not {file for file in unwritten if file.is_relative_to(path)}, target
            assert not undurable, f"{target} is named before {undurable} are durable"
            undurable.add(target)
            named.append(target)
    assert not undurable
    return named


def test_every_file_is_durable_before_the_file_that_names_it(tmp_path: Path) -> None:
    root = tmp_path / "new" / "cache"
    with Disk(tmp_path) as disk:
        write_sample_cache(root)
    named = [path.relative_to(tmp_path).as_posix() for path in assert_order(disk.calls)]
    units = [
        name
        for unit in range(4)
        for name in (
            f"new/cache/shards/{shard_path(root, unit).name}",
            f"new/cache/receipts/0000{unit}.json",
        )
    ]
    assert named == [
        *("new", "new/cache", "new/cache/spec.json", "new/cache/shards", "new/cache/receipts"),
        *("new/cache/ranks.bin", "new/cache/teacher", "new/cache/receipts/teacher.json", *units),
        "new/cache/manifest.json",
    ]


def test_principal_components_are_written_before_every_shard(tmp_path: Path) -> None:
    with Disk(tmp_path) as disk:
        write_sample_cache(tmp_path / "cache", sample_spec(sketch=pca_sketch()))
    named = [path.name for path in assert_order(disk.calls)]
    assert named[named.index("ranks.bin") + 1] == "projection.bin"
    assert not any(name.endswith(".arrow") for name in named[: named.index("projection.bin")])


def test_files_published_by_others_are_durable_before_the_manifest(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    write_sample_cache(root)
    (root / "manifest.json").unlink()
    with Disk(tmp_path) as disk:
        write_sample_cache(root)
    calls = [(call.name, call.target.relative_to(tmp_path).as_posix()) for call in disk.calls]
    manifest = calls.index(("replace", "cache/manifest.json"))
    assert ("fsync", "cache/receipts") in calls[:manifest]
    # Nor is it known whether the cache's own name was.
    assert ("fsync", ".") in calls[:manifest]


def test_a_receipt_is_durably_removed_before_its_shard_is_made_again(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    write_sample_cache(root)
    shard_path(root, 1).unlink()
    with Disk(tmp_path) as disk:
        write_sample_cache(root)
    assert_order(disk.calls)
    calls = [(call.name, call.target.relative_to(tmp_path).as_posix()) for call in disk.calls]
    calls = calls[calls.index(("unlink", "cache/receipts/00001.json")) :]
    shard = ("replace", f"cache/shards/{shard_path(root, 1).name}")
    assert calls.index(("fsync", "cache/receipts")) < calls.index(shard)


@pytest.mark.slow
def test_the_recorder_sees_every_system_call_that_changes_something(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: what the kernel sees cannot be compared")
    script = (
        "import sys; from pathlib import Path\n"
        "from tests.support.sample_cache import write_sample_cache\n"
        "write_sample_cache(Path(sys.argv[1]))\n"
    )
    traced, root = tmp_path / "trace", tmp_path / "traced"
    subprocess.run(
        [*_STRACE, "-o", str(traced), sys.executable, "-c", script, str(root)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    found: Counter[str] = Counter()
    for line in traced.read_text().splitlines():
        call = line.split(maxsplit=1)[1]
        name = call.partition("(")[0]
        if f"{root}" in call and "O_RDONLY" not in call:
            found[_SYSTEM_CALLS.get(name, name)] += 1
    with Disk(tmp_path) as disk:
        write_sample_cache(tmp_path / "recorded")
    recorded = Counter(call.name for call in disk.changes())
    recorded["rename"] += recorded.pop("replace")
    recorded["fsync"] -= 1  # of the directory above, which the filter by name does not see
    assert {name: found[name] for name in recorded} == recorded
    others = {"write", "pwrite64", "writev", "pwritev", "ftruncate", "fdatasync", "unlinkat"}
    others |= {"linkat", "mkdirat", "symlink", "symlinkat", "copy_file_range", "sendfile"}
    assert not [name for name in others - recorded.keys() if found[name]]
