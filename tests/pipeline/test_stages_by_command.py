"""Both stages and ``generate`` by the commands a person types, on a tiny teacher."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.recipe import load_recipe
from tests import tiny

_STUDENT = """
[train_student]
num_blocks = 2
slstm_at = [0]
num_heads = 2
qkv_block_size = 4
batch_size = 4
accumulation = 2
max_steps = 2
precision = "fp32"
compile = "off"
log_every = 1
checkpoint_every = 1
"""


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(_STUDENT)
    return path


@pytest.fixture(scope="module")
def student(
    tmp_path_factory: pytest.TempPathFactory, tiny_cache: Path, recipe: Path
) -> tuple[Path, Result]:
    """A finished run, and what the command said."""
    out = tmp_path_factory.mktemp("run") / "run"
    result = run("train-student", "--recipe", recipe, "--cache", tiny_cache, "--out", out)
    assert result.exit_code == 0, result.output
    return out, result


def test_estimate(tmp_path: Path) -> None:
    teacher = tiny.save_tiny_teacher(tmp_path / "teacher")
    corpus = tiny.write_fineweb_parquet(tmp_path / "corpus.parquet", tiny.tiny_texts(40))
    command = (
        *("estimate", "--recipe", "demo", "--tokens", "1M", "--seconds", "0"),
        *("--set", f"cache_teacher.teacher={teacher}", "--set", f"cache_teacher.corpus={corpus}"),
        *("--set", "cache_teacher.sequence_length=32", "--set", "cache_teacher.compile=off"),
    )
    text = run(*command)
    assert text.exit_code == 0, text.output
    assert text.stdout.startswith("1.00M tokens: ")
    assert "on one such device" in text.stdout
    assert "next_logprob" in text.stdout
    figures = json.loads(run(*command, "--json").stdout)
    assert figures["tokens"] == 1_000_000
    assert figures["hours"] > 0
    columns = figures["column_bytes_per_token"]
    expected = 1_000_000 * sum(columns.values()) + figures["teacher_bytes"]
    assert figures["bytes"] == pytest.approx(expected, rel=1e-3)


def test_cache_teacher(tmp_path: Path) -> None:
    teacher = tiny.save_tiny_teacher(tmp_path / "teacher")
    corpus = tiny.write_fineweb_parquet(tmp_path / "corpus.parquet", tiny.tiny_texts(40))
    command = (
        *("cache-teacher", "--recipe", "demo", "--out", tmp_path / "cache", "--tokens", "1K"),
        *("--set", f"cache_teacher.teacher={teacher}", "--set", f"cache_teacher.corpus={corpus}"),
        *("--set", "cache_teacher.sequence_length=32", "--set", "cache_teacher.compile=off"),
        *("--set", "cache_teacher.documents_per_unit=10"),
    )
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert "Next:\n  pipeline train-student --recipe demo --cache " in result.stdout
    assert "loading the teacher" in result.stderr
    assert "corpus.parquet" in result.stderr
    resolved = load_recipe(str(tmp_path / "cache" / "recipe.toml"))
    assert resolved.cache_teacher.teacher == str(teacher)
    assert resolved.cache_teacher.num_tokens == 1000
    shards = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache/shards").iterdir()}
    assert "tokens/s · teacher idle " in result.stdout
    again = run(*command)
    assert again.exit_code == 0, again.output
    assert "loading the teacher" not in again.stderr
    assert "tokens/s" not in again.stdout
    found = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache/shards").iterdir()}
    assert found == shards


def test_workers_share_a_cache(tmp_path: Path) -> None:
    teacher = tiny.save_tiny_teacher(tmp_path / "teacher")
    corpus = tiny.write_fineweb_parquet(tmp_path / "corpus.parquet", tiny.tiny_texts(40))
    command = (
        *("cache-teacher", "--recipe", "demo", "--out", tmp_path / "cache"),
        *("--set", f"cache_teacher.teacher={teacher}", "--set", f"cache_teacher.corpus={corpus}"),
        *("--set", "cache_teacher.sequence_length=32", "--set", "cache_teacher.compile=off"),
        *("--set", "cache_teacher.documents_per_unit=10"),
    )
    first = run(*command, "--worker", "1/2", "--summary", tmp_path / "first.json")
    assert first.exit_code == 0, first.output
    assert "2 units of other workers were not finished (0, 2)" in first.stdout
    figures = json.loads((tmp_path / "first.json").read_text())
    assert not figures["complete"]
    assert figures["missing_units"] == [0, 2]
    assert figures["run"]["units"] == 2
    second = run(*command, "--worker", "0/2", "--json")
    assert second.exit_code == 0, second.output
    *_, figures = map(json.loads, second.stdout.splitlines())
    assert figures["event"] == "done"
    assert figures["complete"]
    assert figures["missing_units"] == []
    assert figures["cache"]["units"] == 4
    made, held = figures["run"], figures["cache"]
    assert held["bytes"] > made["bytes"] > 0
    assert 0 < held["tokens"] - made["tokens"] < held["tokens"]
    assert 0 < sum(held["column_bytes"].values()) < held["bytes"]
    assert 0 <= made["device_wait_share"] <= 1
    assert made["mfu"] is None
    assert made["tokens_per_second"] > 0
    again = json.loads(run(*command, "--worker", "1/2", "--json").stdout.splitlines()[-1])
    assert again["run"]["tokens"] == 0
    assert again["run"]["tokens_per_second"] is None


def test_train_student(student: tuple[Path, Result]) -> None:
    out, result = student
    assert "step 2: validation: loss " in result.stderr
    assert "step 2: checkpoint" in result.stderr
    assert "step 1/2 · loss " in result.stderr
    assert f"pipeline generate {out}" in result.stdout
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 2
    assert load_recipe(str(out / "recipe.toml")).train_student.num_blocks == 2


def test_train_student_where_no_directory_can_be(
    tmp_path: Path, tiny_cache: Path, recipe: Path
) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file/run"
    result = run("train-student", "--recipe", recipe, "--cache", tiny_cache, "--out", out)
    assert result.exit_code == 1
    assert f"Error: {tmp_path / 'file'}: no directory: it is a file" in result.stderr
    assert "PIPELINE_DEBUG" not in result.stderr


def test_train_student_twice(student: tuple[Path, Result], tiny_cache: Path, recipe: Path) -> None:
    command = ("train-student", "--recipe", recipe, "--cache", tiny_cache, "--out", student[0])
    refused = run(*command)
    assert refused.exit_code == 1
    assert "Add --resume" in refused.stderr
    resumed = run(*command, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert "resuming from" in resumed.stderr


def test_generate(student: tuple[Path, Result]) -> None:
    command = ("generate", student[0], "--prompt", "the teacher", "--max-new-tokens", "6")
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("the teacher")
    assert len(result.stdout) > len("the teacher\n")
    assert result.stdout.endswith("\n")
    assert run(*command).stdout == result.stdout
    others = {run(*command, "--seed", str(seed)).stdout for seed in range(1, 4)}
    assert others != {result.stdout}


def test_generate_the_likeliest(student: tuple[Path, Result]) -> None:
    command = ("generate", student[0] / "model", "--prompt", "a", "--max-new-tokens", "4")
    outputs = {run(*command, "--temperature", "0", "--seed", seed).stdout for seed in "012"}
    assert len(outputs) == 1


def test_generate_without_a_model(student: tuple[Path, Result], tmp_path: Path) -> None:
    unfinished = shutil.copytree(student[0], tmp_path / "run")
    shutil.rmtree(unfinished / "model")
    result = run("generate", unfinished, "--prompt", "a")
    assert result.exit_code == 1
    assert "its training has not finished" in result.stderr
    result = run("generate", tmp_path, "--prompt", "a")
    assert "neither a run of `pipeline train-student` nor a model directory" in result.stderr


def test_generate_from_bytes_that_are_no_text(student: tuple[Path, Result]) -> None:
    result = run("generate", student[0], "--prompt", "a\udcff")
    assert result.exit_code == 1
    assert "Error: --prompt: not UTF-8 text: '\\udcff' at character 1." in result.stderr


def test_generate_from_nothing(student: tuple[Path, Result]) -> None:
    result = run("generate", student[0], "--prompt", "")
    assert result.exit_code == 1
    assert "the prompt is empty" in result.stderr
