"""The demo from the corpus to the picture, with the shipped teacher and a smaller budget."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.demo import run as demo_run
from pipeline.demo.student import Student
from pipeline.recipes.recipe import load_recipe, parse_override

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
    result = CliRunner().invoke(
        main, [*arguments, *_SMALL.get(arguments[0], ())], catch_exceptions=False
    )
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


def test_a_hybrid_student_adds_rows_to_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_run, "_CORPUS_CHARS", 300_000)
    demo_run.run_demo(tmp_path, small_command, with_hybrid=True)
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    found = {name: figures for name, *figures in rows}
    hybrid = tmp_path / "hybrid"
    aligned, distilled = (validations(hybrid / name) for name in ("aligned", "distilled"))
    ordinary = validations(tmp_path / "distilled")
    for name, metrics in (
        ("hybrid, converted", aligned[0]),
        ("hybrid, aligned", aligned[-1]),
        ("hybrid, distilled", distilled[-1]),
        ("student, equal tokens", ordinary[-1]),
    ):
        keys = [f"validation/{key}" for key in ("loss", "kl", "agreement")]
        assert found[name] == [metrics[key] for key in keys]
    # What is trained is float32; a frozen copy has the precision of the teacher's file.
    begin, end = distilled[0]["validation/loss"], aligned[-1]["validation/loss"]
    assert begin == pytest.approx(end, abs=2e-3)
    # 3 steps each, of 2 rows of 256 positions; the ordinary student took as many in all.
    said = "After 3,072 tokens, aligned on 1,536 of them, the hybrid student"
    assert said in capsys.readouterr().out
    assert (hybrid / "untrained" / "config.json").is_file()

    models = [hybrid / name / "model" / "model.safetensors" for name in ("aligned", "distilled")]
    before = [path.stat().st_mtime_ns for path in (hybrid / "untrained", *models)]
    demo_run.run_demo(tmp_path, small_command, with_hybrid=True)
    assert [path.stat().st_mtime_ns for path in (hybrid / "untrained", *models)] == before
    assert said in capsys.readouterr().out


def validations(out: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "validation/loss" in row]


def test_equal_tokens_are_those_of_the_first_validation_after_as_many_rows(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(
        "[train_student]\nbatch_size = 4\ngradient_accumulation_steps = 2\n"
    )
    student = Student("", tmp_path, [{"step": float(step)} for step in (0, 40, 80, 90)], 0.0)
    assert student.num_rows == 720
    for num_rows, step in ((0, 0), (1, 40), (320, 40), (321, 80), (640, 80), (720, 90), (999, 90)):
        assert student.after(num_rows) == {"step": step}


def test_the_hybrid_recipes_read_as_many_rows_as_a_validated_step_of_the_demo() -> None:
    required = [parse_override(f"cache_teacher.{key}=x") for key in ("teacher", "corpus")]
    demo, align, distill = (
        load_recipe(name, required).train_student
        for name in ("demo", "demo-hybrid-align", "demo-hybrid-distill")
    )
    assert align.validation_rows == distill.validation_rows == demo.validation_rows
    num_rows = sum(
        (config.max_steps or 0) * config.batch_size * config.gradient_accumulation_steps
        for config in (align, distill)
    )
    assert num_rows > 0
    assert num_rows % (demo.eval_steps * demo.batch_size) == 0
    assert demo.gradient_accumulation_steps == 1


def test_the_shipped_teacher_is_small_and_says_how_it_was_made() -> None:
    from safetensors import safe_open

    weights = demo_run.TEACHER / "model.safetensors"
    assert weights.stat().st_size <= 8_000_000
    with safe_open(weights, "np") as file:
        assert "model.embed_tokens.weight" in file.keys()  # noqa: SIM118 (no mapping)
    card = (demo_run.TEACHER / "README.md").read_text()
    for words in ("Held-out loss", "steps", "documentation"):
        assert words in card
