"""The tiny teachers that stage one's tests share; saved once a session, never written to."""

from pathlib import Path

import pytest

from tests.tiny import save_tiny_teacher


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tied embedding and head, 8 padding rows."""
    return save_tiny_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def untied_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Head of its own, no padding rows."""
    return save_tiny_teacher(tmp_path_factory.mktemp("untied"), tie=False, padding_rows=0)
