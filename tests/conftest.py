"""One thread, no Hub, no network: set before any test imports torch or transformers."""

import os

os.environ.update(
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_VERBOSITY="error",
    CUDA_VISIBLE_DEVICES="",
)

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# A timing is never a test, and a suite gives the same answer twice.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cache of a tiny teacher; a test that changes it copies it first."""
    from tests import tiny

    return tiny.tiny_cache(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """An S3 server; tests that use it are marked ``allow_hosts(["127.0.0.1"])``."""
    from tests import object_store

    yield from object_store.serve()


@pytest.fixture
def bucket(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a new bucket on the S3 server."""
    from tests import object_store

    return object_store.new_bucket(s3_endpoint, tmp_path.name, monkeypatch)
