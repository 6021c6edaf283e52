"""The sample cache, made anew for every test, so that each may damage its own."""

from pathlib import Path

import pytest

from tests.support.sample_cache import write_sample_cache


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A complete cache; units 0 and 3 are validation, 1 and 2 (which is empty) train."""
    write_sample_cache(tmp_path / "cache")
    return tmp_path / "cache"
