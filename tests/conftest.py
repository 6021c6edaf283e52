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
