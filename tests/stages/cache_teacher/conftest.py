"""The tiny teachers and benches that stage one's tests share; teachers are saved once a session."""

from pathlib import Path

import pytest

from tests.support.stage_one_runs import Bench, Watch
from tests.support.tiny import save_tiny_teacher


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tied embedding and head, 8 padding rows."""
    return save_tiny_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def untied_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Head of its own, no padding rows."""
    return save_tiny_teacher(tmp_path_factory.mktemp("untied"), tie=False, padding_rows=0)


@pytest.fixture
def bench(tiny_teacher: Path, tmp_path: Path) -> Bench:
    """Runs of stage one over 80 documents in units of 10."""
    return Bench(tiny_teacher, tmp_path)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Counts what the runs of a test tokenise and load."""
    return Watch(monkeypatch)
