"""The figures that the paper publishes, from its tables."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.judgement.suite import load_suite
from pipeline.judgement.win_and_tie import critical_tolerances, needed_tolerances
from tests.support.command_line import done
from tests.support.result_files import write_results

_TABLES: dict[str, Any] = json.loads((Path(__file__).parent / "paper_tables.json").read_text())
_UNDERSTANDING = slice(0, 6)
_GENERATION = slice(6, 13)
_ALL = slice(None)


def alpha_star(family: str, model: str, part: slice, student: str = "student") -> float:
    scores = _TABLES[family]["models"][model]
    needed = needed_tolerances(np.array(scores[student][part]), np.array(scores["teacher"][part]))
    return float(critical_tolerances(needed)[0])


@pytest.mark.parametrize(
    ("family", "model", "part", "published"),
    [
        ("base", "Llama3.1-8B", _GENERATION, "0.00"),
        ("base", "Llama3.1-8B", _UNDERSTANDING, "0.00"),
        ("base", "Llama3.1-8B", _ALL, "0.00"),
        ("base", "Olmo3-7B", _ALL, "0.01"),
        ("instruct", "Llama3.1-8B-IT", _ALL, "0.02"),
    ],
)
def test_the_published_critical_tolerance(
    family: str, model: str, part: slice, published: str
) -> None:
    assert f"{alpha_star(family, model, part):.2f}" == published


def test_on_its_generation_benchmarks_alone_olmo_needs_more() -> None:
    assert alpha_star("base", "Olmo3-7B", _GENERATION) == pytest.approx(1 - 17.7 / 20.7)
    assert f"{alpha_star('base', 'Olmo3-7B', _GENERATION):.3f}" == "0.145"


def test_a_baseline_without_the_teacher_s_abilities_needs_most() -> None:
    """The paper rounds this to 1.0; its table gives .92."""
    assert f"{alpha_star('base', 'Llama3.1-8B', _GENERATION, 'LoLCATs'):.2f}" == "0.92"


def test_qwen_s_published_figure_is_within_the_rounding_of_its_table() -> None:
    """.05 is published. The table's two decimals give .041, and leave room for .026 to .054."""
    scores = _TABLES["instruct"]["models"]["Qwen2.5-7B-IT"]
    student, teacher = np.array(scores["student"]), np.array(scores["teacher"])
    assert f"{alpha_star('instruct', 'Qwen2.5-7B-IT', _ALL):.3f}" == "0.041"
    worst = critical_tolerances(needed_tolerances(student - 0.005, teacher + 0.005))[0]
    assert round(worst, 2) == 0.05


def test_the_suite_of_base_models_is_that_of_the_tables() -> None:
    names = [task.task for task in load_suite("paper-base").tasks]
    assert names == _TABLES["base"]["benchmarks"]


@pytest.mark.parametrize(
    ("suite", "size", "published"),
    [("paper-base", 13, 0.0105), ("paper-base:generation", 7, 0.1449)],
)
def test_by_command_with_the_set_and_its_size(
    tmp_path: Path, suite: str, size: int, published: float
) -> None:
    """From result files of the harness, the student's in two."""
    tasks = load_suite("paper-base").tasks
    scores = _TABLES["base"]["models"]["Olmo3-7B"]

    def write(path: Path, who: str, part: slice) -> Path:
        chosen = list(zip(tasks, scores[who], strict=True))[part]
        keys = {task.task: task.metric or "" for task, _ in chosen}
        results = {
            task.task: {keys[task.task] + ("" if "," in keys[task.task] else ",none"): score}
            for task, score in chosen
        }
        shots = {task.task: task.num_fewshot for task, _ in chosen}
        sections: dict[str, Any] = {"results": results, "n-shot": shots}
        return write_results(path, {}, **sections)

    parts = [
        write(tmp_path / "understanding.json", "student", _UNDERSTANDING),
        write(tmp_path / "generation.json", "student", _GENERATION),
    ]
    teacher = write(tmp_path / "teacher.json", "teacher", _ALL)
    arguments: list[str | Path] = ["win-and-tie", *parts, "--teacher", teacher, "--suite", suite]
    found = json.loads(done(*arguments, "--resamples", "50", "--json").stdout)
    assert found["benchmark_set"] == {"name": suite, "size": size}
    assert found["alpha_star"] == pytest.approx(published, abs=5e-5)
    text = done(*arguments, "--resamples", "50").stdout
    assert text.startswith(f"Benchmark set: {suite} ({size} benchmarks)\n")
    assert f"α* = {published:.4f} on {suite} ({size} benchmarks)" in text
