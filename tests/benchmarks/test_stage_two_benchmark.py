"""The benchmarks of stage two run, and their figures fit together."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import cache_format
from benchmarks import demo_text, online, stage_one, stage_two
from benchmarks.__main__ import main
from benchmarks.trainings import WAYS
from pipeline.recipes.recipe import load_recipe, parse_override
from stages.train_student.tracking.throughput import peak_bytes
from tests.support.tiny import save_tiny_teacher, tiny_texts, write_fineweb_parquet


@pytest.fixture
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stage_one.PRESETS, "94M", (32, 48, 2, 4, 2))
    monkeypatch.setattr(stage_one, "HEAD_ROWS", 4_400)
    monkeypatch.setattr(stage_one, "NUM_IDS", 4_300)


ARGUMENTS = (
    *("stage-two", "--teacher", "94M", "--blocks", "2", "--heads", "2", "--batch-size", "2"),
    *(
        "--gradient-accumulation-steps",
        "2",
        "--sequence-length",
        "64",
        "--compile",
        "off",
        "--json",
    ),
    *("--steps", "1", "--repeats", "2"),
)


@pytest.mark.usefixtures("tiny_preset")
def test_the_stage_two_benchmark_prints_its_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    peaks = {"cache": 3, "online": 4, "labels": 2}
    monkeypatch.setattr(stage_two, "peak_in_new_process", lambda work, setup, way: peaks[way])
    arguments = [*ARGUMENTS, "--work", str(tmp_path)]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    figures = json.loads(result.stdout)
    assert figures["tokens_per_step"] == 2 * 2 * 64
    assert figures["peak_bytes_ratio_to_online"] == 0.75
    for name in ("ratio_to_labels_only", "speedup_over_online", "loader_ratio"):
        assert 0 < figures[f"{name}_least"] <= figures[name] <= figures[f"{name}_most"]
    for name in (*WAYS, "loader"):
        assert figures[f"{name}_tokens_per_s"] > 0
    again = CliRunner().invoke(main, [*arguments, "--sequence-length", "32"])
    assert "sequence_length" in str(again.exception)  # another cache than that in --work


@pytest.mark.usefixtures("tiny_preset")
def test_the_cache_of_the_stage_two_benchmark_has_the_targets_that_are_named(
    tmp_path: Path,
) -> None:
    chosen = ("--targets", "hidden", "--no-peaks", "--work", str(tmp_path))
    result = CliRunner().invoke(main, [*ARGUMENTS, *chosen], catch_exceptions=False)
    assert json.loads(result.stdout)["ratio_to_labels_only"] > 0
    assert cache_format.open(tmp_path / "cache").spec.targets.kind == "hidden"


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_preset")
def test_each_peak_is_measured_in_its_own_process(tmp_path: Path) -> None:
    ballast = torch.ones(2**30, dtype=torch.uint8)  # would be inherited from what getrusage says
    result = CliRunner().invoke(main, [*ARGUMENTS, "--work", str(tmp_path)], catch_exceptions=False)
    figures = json.loads(result.stdout)
    assert all(2**27 < figures[f"{way}_peak_bytes"] < len(ballast) for way in WAYS)


def test_peak_cpu_memory_does_not_fall_after_it_is_freed() -> None:
    before = peak_bytes(torch.device("cpu"))
    torch.ones(before + 2**26, dtype=torch.uint8)
    assert peak_bytes(torch.device("cpu")) >= before + 2**26


def write_tiny_corpus(target: Path, side: str, num_chars: int) -> None:
    """In place of the demo's, which reads all of this Python's documentation."""
    assert side == "demo"
    write_fineweb_parquet(target, tiny_texts(40))


def test_three_students_train_on_the_demo_with_the_same_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(demo_text, "write_parquet", write_tiny_corpus)
    monkeypatch.setattr(online, "TEACHER", save_tiny_teacher(tmp_path / "teacher"))
    trained: dict[str, Any] = {}

    def here(way: Any, work: Path, steps: int, settings: Any) -> dict[str, float]:
        overrides = [
            parse_override(text) for text in (*settings, f"train_student.max_steps={steps}")
        ]
        trained[way] = online.train(way, work, load_recipe("demo", overrides))
        return {**trained[way]}

    monkeypatch.setattr(online, "in_new_process", here)
    changes = {
        "cache_teacher.documents_per_unit": 10,
        "cache_teacher.sequence_length": 64,
        "cache_teacher.compile": "off",
        "train_student.compile": "off",
        "train_student.student.num_blocks": 1,
        "train_student.student.slstm_at": [],
        "train_student.batch_size": 4,
        "train_student.validation_rows": 4,
    }
    settings = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    arguments = ["online", "--steps", "3", "--work", str(tmp_path), *settings]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    lines, costs = (part.splitlines() for part in result.stdout.split("\n\n", 1))
    assert costs
    assert [line[:22].strip() for line in lines] == [
        *("", "from the cache", "teacher in the loop", "labels alone"),
    ]
    losses = [found["validation_loss"] for found in trained.values()]
    assert len(set(losses)) == 3
    assert max(losses) - min(losses) < 1
    assert all(0 < found["validation_kl"] < found["validation_loss"] for found in trained.values())
