"""The benchmark of kept ids: what a context tells of them makes them cheaper."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import kept_ids
from benchmarks.__main__ import main


def test_every_context_has_a_figure(tiny_cache: Path) -> None:
    command = ["kept-ids", str(tiny_cache), "--json"]
    found = json.loads(CliRunner().invoke(main, command, catch_exceptions=False).stdout)
    assert list(found) == ["rank", "recent", "same", "input", "near", "all"]
    assert all(0 < num_bytes < 1000 for num_bytes in found.values())


def test_a_class_costs_its_entropy_and_one_that_decides_costs_nothing() -> None:
    even = np.array([[500], [500]])
    assert kept_ids._bits(even, np.array([[4], [4]])) == pytest.approx(8, rel=1e-3)
    decided = np.array([[1000, 0], [0, 1000]])
    assert kept_ids._bits(decided, np.array([[4, 0], [0, 4]])) < 0.01
