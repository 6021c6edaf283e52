"""SIGKILL at every publish point, and two processes at once: the cache is the same, bit for bit."""

import subprocess
import sys
from pathlib import Path

import pytest

import cache_format
from cache_format.tools.verify import verify
from tests.support import ROOT
from tests.support.sample_cache import assert_decoded, contents, unit_rows, write_sample_cache


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_writer_killed_at_any_publish_point_resumes_to_the_same_bytes(
    tmp_path: Path, step: int
) -> None:
    """At every third one, and at each of them in the slow test."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.killed_writers", str(tmp_path), str(step)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100 / step
    cache = cache_format.open(tmp_path / "whole")
    assert verify(cache) == []
    for index, row in enumerate(unit_rows(1, cache.spec)):
        assert_decoded(cache.read_row("train", index)[1], row, cache.spec)


_WRITE = """
import sys
from pathlib import Path
from tests.support.sample_cache import contents, write_sample_cache
print("ready", flush=True)
for name in sys.stdin.readline().split():
    write_sample_cache(Path(sys.argv[1]) / name)
"""


def test_concurrent_writers_of_the_same_caches_write_the_same_bytes(tmp_path: Path) -> None:
    write_sample_cache(tmp_path / "whole")
    names = [str(number) for number in range(20)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITE, str(tmp_path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(" ".join(names) + "\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    wanted = contents(tmp_path / "whole")
    for name in names:
        assert contents(tmp_path / name) == wanted
        assert verify(cache_format.open(tmp_path / name)) == []


@pytest.mark.parametrize(
    ("module", "foreign"),
    [
        ("cache_format", {"numpy", "pyarrow"}),
        ("cache_format.errors", {"numpy", "pyarrow"}),
        ("cache_format.metadata.spec", {"numpy", "pyarrow"}),
        ("cache_format.storage.atomic", {"numpy", "pyarrow"}),
        ("cache_format.opening", {"pyarrow"}),
        ("cache_format.writer", {"torch", "click"}),
    ],
)
def test_importing_a_module_does_not_load_heavy_packages(module: str, foreign: set[str]) -> None:
    script = f"import sys, {module}; print(*({foreign} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
