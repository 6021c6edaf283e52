"""The demo from the corpus to the picture, with the shipped teacher and a smaller budget."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.demo import run as demo_run

_SMALL = {
    "cache-teacher": (
        *("--tokens", "24K", "--set", "cache_teacher.documents_per_unit=1"),
        *("--set", "cache_teacher.validation_every=3", "--set", "cache_teacher.compile=off"),
    ),
    "train-student": (
        *(
            "--set",
            "train_student.max_steps=3",
            "--set",
            "train_student.compile=off",
            "--set",
            "train_student.batch_size=2",
        ),
        *("--set", "train_student.eval_steps=2", "--set", "train_student.logging_steps=1"),
        *("--set", "train_student.validation_rows=4"),
    ),
}


def small_command(arguments: Sequence[str]) -> None:
    result = CliRunner().invoke(main, [*arguments, *_SMALL[arguments[0]]], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def test_the_demo_ends_with_table_plot_and_next_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_run, "_CORPUS_CHARS", 300_000)
    demo_run.run_demo(tmp_path, small_command)
    printed = capsys.readouterr().out
    for words in (
        *("teacher", "student, distilled", "student, labels", "student, untrained"),
        *("bytes/token", "At equal steps (3)", " inspect ", " generate "),
    ):
        assert words in printed
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((tmp_path / "results.json").read_text())
    losses = {name: loss for name, loss, _, _ in results["rows"]}
    assert losses["teacher"] < losses["student, untrained"]
    last = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])
        for name in ("distilled", "labels")
    ]
    assert losses["student, distilled"] == last[0]["validation/loss"]
    assert losses["student, labels"] == last[1]["validation/loss"]
    assert results["gain_nats"] == last[1]["validation/loss"] - last[0]["validation/loss"]

    models = [tmp_path / name / "model" / "model.safetensors" for name in ("distilled", "labels")]
    before = [path.stat().st_mtime_ns for path in models]
    demo_run.run_demo(tmp_path, small_command)
    assert [path.stat().st_mtime_ns for path in models] == before  # a second run reuses the first
    assert "At equal steps (3)" in capsys.readouterr().out


def test_the_shipped_teacher_is_small_and_says_how_it_was_made() -> None:
    from safetensors import safe_open

    weights = demo_run.TEACHER / "model.safetensors"
    assert weights.stat().st_size <= 8_000_000
    with safe_open(weights, "np") as file:
        assert "model.embed_tokens.weight" in file.keys()  # noqa: SIM118 (no mapping)
    card = (demo_run.TEACHER / "README.md").read_text()
    for words in ("Held-out loss", "steps", "documentation"):
        assert words in card
