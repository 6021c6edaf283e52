"""One thread, no fork, no Hub, no network: set before any test imports torch or transformers."""

import os

os.environ.update(
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_VERBOSITY="error",
    DISABLE_MULTIPROC="1",  # lm-eval forks; with threads of other tests, a fork may never end
)
if os.environ.get("XLSTM_DISTILL_GPU_TESTS") != "cuda":  # `make gpu` alone is shown GPUs
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import multiprocessing
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from hypothesis import settings

# A timing is never a test, and a suite gives the same answer twice.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cache of a tiny teacher; a test that changes it copies it first."""
    from tests.support import tiny

    return tiny.tiny_cache(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def fork_server() -> ForkServerContext:
    """Forks processes that have imported both stages, so that a start costs milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "cache_format.reader",
            "pipeline.cli",
            "stages.cache_teacher.run",
            "stages.train_student.run",
            "tests.support.train_in_processes",
            "tests.test_crash",
            "transformers.models.auto.modeling_auto",
            "transformers.models.auto.tokenization_auto",
            "transformers.models.qwen2.modeling_qwen2",
            "transformers.models.qwen2.tokenization_qwen2",
        ]
    )
    return context


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """An S3 server; tests that use it are marked ``allow_hosts(["127.0.0.1"])``."""
    from tests.support import object_store

    yield from object_store.serve()


@pytest.fixture
def bucket(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a new bucket on the S3 server."""
    from tests.support import object_store

    return object_store.new_bucket(s3_endpoint, tmp_path.name, monkeypatch)
