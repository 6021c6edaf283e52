"""What is said when a command fails."""

import errno

import pytest
import torch

from pipeline.recipes.recipe import Recipe
from pipeline.runtime.failures import explain, interrupted
from stages.cache_teacher.config import CacheTeacherConfig
from stages.train_student.config import TrainStudentConfig

RECIPE = Recipe(
    cache_teacher=CacheTeacherConfig(rows_per_forward=12, head_chunk=100),
    train_student=TrainStudentConfig(batch_size=6, gradient_accumulation_steps=5, loss_chunk=70),
)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_names_the_settings_to_lower(error: Exception) -> None:
    one = explain(error, "cache-teacher", RECIPE)
    assert one.startswith("out of memory: ")
    assert "more\n" not in one
    assert "rows_per_forward (now 12)" in one
    assert "--set cache_teacher.rows_per_forward=6 --set cache_teacher.head_chunk=50" in one
    two = explain(error, "train-student", RECIPE)
    assert "batch_size (now 6)" in two
    assert (
        "--set train_student.batch_size=3 --set train_student.gradient_accumulation_steps=10" in two
    )
    assert "--set train_student.loss_chunk=35" in two


def test_a_proposed_lower_setting_is_at_least_one() -> None:
    smallest = Recipe(cache_teacher=CacheTeacherConfig(rows_per_forward=1, head_chunk=1))
    message = explain(MemoryError(), "cache-teacher", smallest)
    assert "--set cache_teacher.rows_per_forward=1 " in message


def test_settings_proposed_for_out_of_memory_are_valid() -> None:
    from pipeline.recipes.recipe import load_recipe, parse_override

    for command in ("cache-teacher", "train-student"):
        words = explain(MemoryError(), command, None).split()
        proposed = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        assert len(proposed) >= 2
        load_recipe("distil-xlstm", [parse_override(setting) for setting in proposed])


def test_a_full_disk_names_the_file_and_how_to_resume() -> None:
    error = OSError(errno.ENOSPC, "No space left on device", "run/metrics.jsonl")
    message = explain(error, "train-student", RECIPE)
    assert "run/metrics.jsonl" in message
    assert "Free some disk space" in message
    assert message.endswith("\nRun the same command with --resume.")


def test_messages_of_our_own_errors_are_unchanged() -> None:
    assert explain(ValueError("x: wrong. Do y."), "verify", None) == "x: wrong. Do y."


def test_foreign_errors_are_shown_with_their_type() -> None:
    assert explain(RuntimeError("shape"), "verify", None) == "RuntimeError: shape"
    assert explain(ValueError(), "verify", None) == "ValueError: "


@pytest.mark.parametrize(
    ("command", "next_step"),
    [("cache-teacher", "same command"), ("train-student", "--resume"), ("demo", "same command")],
)
def test_an_interrupted_command_says_how_to_resume(command: str, next_step: str) -> None:
    assert next_step in interrupted(command)


def test_an_interrupted_inspect_has_nothing_to_resume() -> None:
    assert interrupted("inspect") == "Interrupted."
