"""What the hybrid student's benchmark prints has the promised fields and plausible values."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.__main__ import main
from tests.support.hybrid_runs import save_tiny_llama

SIZES = {
    "family": "qwen3",
    "width": "32",
    "layers": "2",
    "heads": "4",
    "groups": "2",
    "vocabulary": "64",
    "window": "16",
    "contexts": "24,48,96",
    "train-lengths": "64,128",
    "repeats": "1",
}


def invoke(*arguments: str, **changes: str) -> Any:
    sizes = SIZES | changes
    words = [word for name, value in sizes.items() for word in (f"--{name}", value)]
    return CliRunner().invoke(main, ["hybrid", *arguments, *words], catch_exceptions=False)


def test_the_hybrid_benchmark_prints_its_figures() -> None:
    result = invoke("--json")
    figures = json.loads(result.stdout)
    for name in ("prefill_tokens_per_s", "decode_ms_per_token", "state_bytes"):
        for who in ("student", "teacher"):
            assert list(figures[name][who]) == ["24", "48", "96"]
            assert min(figures[name][who].values()) > 0
    scalars = {name: value for name, value in figures.items() if not isinstance(value, dict)}
    assert scalars.keys() == {
        *("threads", "prefill_ratio_96", "decode_ratio_96"),
        *("decode_growth", "teacher_decode_growth"),
        *("peak_bytes_ratio_training", "peak_bytes_training", "train_tokens_per_s"),
        *("peak_bytes_ratio_alignment", "peak_bytes_alignment", "align_tokens_per_s"),
    }
    assert all(math.isfinite(value) and value > 0 for value in scalars.values())
    assert "training: alignment" in result.stderr


def test_the_student_s_state_is_flat_and_the_teacher_s_cache_grows() -> None:
    num_bytes = json.loads(invoke("--json").stdout)["state_bytes"]
    assert len(set(num_bytes["student"].values())) == 1
    # Keys and values of 2 layers, 2 heads of width 8, in float32.
    assert num_bytes["teacher"] == {str(n): 2 * 2 * 2 * 8 * 4 * n for n in (24, 48, 96)}


def test_memory_of_a_step_grows_with_the_row_alone() -> None:
    lengths = {"train-lengths": "256,512"}  # more than a chunk
    figures = json.loads(invoke("--json", **lengths).stdout)
    assert 1.2 < figures["peak_bytes_ratio_training"] < 2.2
    assert 1.2 < figures["peak_bytes_ratio_alignment"] < 2.2


@pytest.mark.parametrize("pattern", ["window", "attention,mlstm,hybrid"])
def test_a_teacher_can_be_read_and_layers_chosen(pattern: str, tmp_path: Path) -> None:
    directory = save_tiny_llama(tmp_path / "teacher")
    result = invoke("--teacher", str(directory), pattern=pattern)
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["24", "48", "96"]
    found = {" ".join(row[:2]): row[2:] for row in rows if len(row) == 5}
    assert len(set(found["state_bytes student"])) == (1 if pattern == "window" else 3)
    assert len(found) == 6
    names = {row[0] for row in rows}
    assert ("align_tokens_per_s" in names) == (pattern != "window")
    assert "train_tokens_per_s" in names
