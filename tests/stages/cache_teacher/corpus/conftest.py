"""Closes the corpora that a test has opened."""

from collections.abc import Iterator

import pytest

from tests.support import corpora


@pytest.fixture(autouse=True)
def close_corpora() -> Iterator[None]:
    yield
    corpora.close_all()
