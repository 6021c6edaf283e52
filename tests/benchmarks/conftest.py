"""A small corpus for the benchmarks: finding the demo's documents takes seconds."""

import argparse
import inspect
import json
import optparse
import textwrap
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def text_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of Python's own modules, which the demo's teacher was trained on the likes of."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    texts = (inspect.getsource(module) for module in (argparse, optparse, textwrap))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path
