"""The stages as Python functions: their docstrings' examples run, and importing them is cheap."""

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import cache_format
from pipeline.recipes.recipe import load_recipe
from tests.support import ROOT, tiny


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples' teacher and corpus are."""
    root = tmp_path_factory.mktemp("examples")
    tiny.save_tiny_teacher(root / "my-teacher")
    tiny.write_fineweb_parquet(root / "my-corpus.parquet", tiny.tiny_texts(100))
    return root


def run_examples(function: object, name: str) -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(function, name, globs={})
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


def test_the_python_examples_of_both_stages_and_of_caches_run(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages.cache_teacher import CacheTeacherConfig, cache_teacher
    from stages.train_student import TrainStudentConfig, train_student

    monkeypatch.chdir(directory)
    run_examples(cache_teacher, "cache_teacher")
    run_examples(cache_format.open, "open")
    run_examples(train_student, "train_student")
    cached = load_recipe("my-cache/recipe.toml").cache_teacher
    assert cached != CacheTeacherConfig()
    assert cached.teacher == "my-teacher"
    trained = load_recipe("my-run/recipe.toml").train_student
    assert trained != TrainStudentConfig()
    assert trained.max_steps == 2


def test_importing_a_stage_imports_nothing_heavy() -> None:
    program = """
import sys
import stages.cache_teacher, stages.train_student
from stages.cache_teacher import CacheTeacherConfig
from stages.train_student import TrainStudentConfig
print(sorted({"torch", "transformers", "numpy", "pyarrow"} & set(sys.modules)))
"""
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert finished.stdout.strip() == "[]", finished.stderr


@pytest.mark.parametrize("stage", ["cache_teacher", "train_student"])
def test_importing_an_unknown_name_from_a_stage_fails(stage: str) -> None:
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec(f"from stages.{stage} import nothing")
