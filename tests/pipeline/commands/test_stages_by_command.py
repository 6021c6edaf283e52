"""Both stages and ``generate`` by the commands a person types, on a tiny teacher."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import cache_format
from pipeline.comparison.compared import COMPARED
from pipeline.recipes.recipe import load_recipe
from stages.train_student.checkpoints.run_record import read_record, write_record
from stages.train_student.export.saved_student import find_checkpoint, publish_checkpoint
from stages.train_student.modeling.distil_xlstm.settings import DistilXLSTMSettings
from tests.support import tiny
from tests.support.command_line import run
from tests.support.student_caches import TARGETS, write_cache

_STUDENT = """
[train_student.student]
num_blocks = 2
slstm_at = [0]
num_heads = 2
qkv_block_size = 4
[train_student]
batch_size = 4
gradient_accumulation_steps = 2
max_steps = 2
precision = "fp32"
compile = "off"
logging_steps = 1
save_steps = 1
"""


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


def test_estimate_prints_text_or_json_for_a_tiny_teacher(tmp_path: Path) -> None:
    teacher = tiny.save_tiny_teacher(tmp_path / "teacher")
    corpus = tiny.write_fineweb_parquet(tmp_path / "corpus.parquet", tiny.tiny_texts(40))
    command = (
        *("estimate", "--recipe", "demo", "--tokens", "1M", "--seconds", "0"),
        *("--set", f"cache_teacher.teacher={teacher}", "--set", f"cache_teacher.corpus={corpus}"),
        *("--set", "cache_teacher.sequence_length=32", "--set", "cache_teacher.compile=off"),
        *("--set", "cache_teacher.targets=top_k"),
    )
    text = run(*command)
    assert text.exit_code == 0, text.output
    assert text.stdout.startswith("1.00M tokens: ")
    assert "on one device like this" in text.stdout
    assert "next_logprob" in text.stdout
    assert "  validation  12.5% of the rows\n" in text.stdout
    figures = json.loads(run(*command, "--json").stdout)
    assert figures["tokens"] == 1_000_000
    assert figures["hours"] > 0
    assert figures["validation_share"] == pytest.approx(1 / 8, abs=1e-3)
    columns = figures["column_bytes_per_token"]
    expected = 1_000_000 * sum(columns.values()) + figures["teacher_bytes"]
    assert figures["bytes"] == pytest.approx(expected, rel=1e-3)


def test_estimate_compares_targets_as_text_or_json(tmp_path: Path) -> None:
    teacher = tiny.save_tiny_teacher(tmp_path / "teacher")
    corpus = tiny.write_fineweb_parquet(tmp_path / "corpus.parquet", tiny.tiny_texts(60))
    command = (
        *("estimate", "--recipe", "demo", "--tokens", "1M", "--compare-targets"),
        *("--set", f"cache_teacher.teacher={teacher}", "--set", f"cache_teacher.corpus={corpus}"),
        *("--set", "cache_teacher.sequence_length=32", "--set", "cache_teacher.top_k=64"),
        *("--set", "cache_teacher.targets=top_k"),
    )
    text = run(*command)
    assert text.exit_code == 0, text.output
    assert text.stdout.startswith("1.00M tokens: size, KL")
    assert "<- recipe" in text.stdout
    assert f"of {len(COMPARED)} settings" in text.stderr
    figures = json.loads(run(*command, "--json").stdout)
    assert figures["tokens"] == 1_000_000
    marked = [row["settings"] for row in figures["kinds"] if row["is_recipe"]]
    assert marked == [{"top_k": 64}]


def test_a_comparison_of_targets_takes_no_seconds() -> None:
    result = run("estimate", "--recipe", "demo", "--compare-targets", "--seconds", "3")
    assert result.exit_code == 2
    assert "--seconds: not with --compare-targets" in result.stderr


def test_cache_teacher_makes_a_cache_of_a_tiny_teacher(tmp_path: Path) -> None:
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


def test_two_workers_by_command_complete_one_cache(tmp_path: Path) -> None:
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
    assert "2 units of other workers are not finished yet (0, 2)" in first.stdout
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
    assert 0 < figures["cache"]["validation_tokens"] < figures["cache"]["tokens"] / 2
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


def test_train_student_reports_steps_and_writes_metrics_and_recipe(
    student: tuple[Path, Result],
) -> None:
    out, result = student
    assert "step 2: validation: loss " in result.stderr
    assert "step 2: checkpoint" in result.stderr
    assert "step 1/2 · loss " in result.stderr
    assert f"pipeline generate {out}" in result.stdout
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 2
    assert load_recipe(str(out / "recipe.toml")).train_student.student == DistilXLSTMSettings(
        num_blocks=2, slstm_at=(0,), num_heads=2, qkv_block_size=4
    )


def test_train_student_refuses_an_out_that_cannot_be_a_directory(
    tmp_path: Path, tiny_cache: Path, recipe: Path
) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file/run"
    result = run("train-student", "--recipe", recipe, "--cache", tiny_cache, "--out", out)
    assert result.exit_code == 1
    assert f"Error: {tmp_path / 'file'}: not a directory but a file" in result.stderr
    assert "PIPELINE_DEBUG" not in result.stderr


def test_training_into_an_existing_run_needs_resume(
    student: tuple[Path, Result], tiny_cache: Path, recipe: Path
) -> None:
    command = ("train-student", "--recipe", recipe, "--cache", tiny_cache, "--out", student[0])
    refused = run(*command)
    assert refused.exit_code == 1
    assert "Run the same command with --resume." in refused.stderr
    assert "--out sets the directory." in refused.stderr
    resumed = run(*command, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert "resuming from" in resumed.stderr


def test_generate_gives_the_same_text_for_the_same_seed(student: tuple[Path, Result]) -> None:
    command = ("generate", student[0], "--prompt", "the teacher", "--max-new-tokens", "6")
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("the teacher")
    assert len(result.stdout) > len("the teacher\n")
    assert result.stdout.endswith("\n")
    assert run(*command).stdout == result.stdout
    others = {run(*command, "--seed", str(seed)).stdout for seed in range(1, 4)}
    assert others != {result.stdout}


def test_temperature_0_gives_the_same_text_for_every_seed(student: tuple[Path, Result]) -> None:
    command = ("generate", student[0] / "model", "--prompt", "a", "--max-new-tokens", "4")
    outputs = {run(*command, "--temperature", "0", "--seed", seed).stdout for seed in "012"}
    assert len(outputs) == 1


@pytest.fixture
def unfinished(student: tuple[Path, Result], tmp_path: Path) -> Path:
    """The run without its model: checkpoints of steps 1 and 2."""
    run = Path(shutil.copytree(student[0], tmp_path / "run"))
    shutil.rmtree(run / "model")
    return run


_TEXT = ("--prompt", "the teacher", "--max-new-tokens", "6")


def test_generate_uses_the_newest_checkpoint_of_an_unfinished_run(
    student: tuple[Path, Result], unfinished: Path
) -> None:
    """The newest checkpoint is what the model was made of; another one says other things."""
    expected = run("generate", student[0], *_TEXT).stdout
    result = run("generate", unfinished, *_TEXT)
    assert result.exit_code == 0, result.output
    assert result.stdout == expected
    newest = unfinished / "checkpoints/step-0000002"
    assert f"{newest}: step 2 of an unfinished run\n" in result.stderr
    named = run("generate", unfinished / "checkpoints/step-0000001", *_TEXT)
    assert named.exit_code == 0, named.output
    assert "step 1 of an unfinished run" in named.stderr
    (newest / "state.json").write_text("[]")
    older = run("generate", unfinished, *_TEXT)
    assert older.stdout == named.stdout
    assert "step-0000002" in older.stderr
    assert "It is skipped.\n" in older.stderr
    assert newest.is_dir()  # whoever only looks renames nothing
    result = run("generate", newest, *_TEXT)
    assert result.exit_code == 1
    assert "damaged" in result.stderr


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"num_blocks": 4096}, "num_blocks is 4096, but the weights have 2 blocks"),
        ({"feedforward_factor": 9.0}, "tensors: .*expected .*found"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(
    unfinished: Path, tiny_cache: Path, tmp_path: Path, settings: dict[str, Any], problem: str
) -> None:
    """Sealed, hence written so by someone; refused before memory is taken for it."""
    checkpoint, _ = find_checkpoint(unfinished)
    config = checkpoint.state.config
    config = config | {"student": config["student"] | settings}
    state = dataclasses.replace(checkpoint.state, config=config)
    with pytest.raises(ValueError, match=problem) as raised:
        publish_checkpoint(
            dataclasses.replace(checkpoint, state=state),
            cache_format.open(tiny_cache),
            tmp_path / "model",
        )
    assert str(checkpoint.path) in str(raised.value)


def test_a_checkpoint_that_holds_nan_makes_no_student(
    unfinished: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    checkpoint, _ = find_checkpoint(unfinished)
    for tensor in checkpoint.tensors.values():
        tensor.fill_(float("nan"))
    with pytest.raises(ValueError, match="holds NaN or infinity") as raised:
        publish_checkpoint(checkpoint, cache_format.open(tiny_cache), tmp_path / "model")
    assert str(checkpoint.path) in str(raised.value)
    assert not (tmp_path / "model").exists()


def test_generate_asks_for_the_cache_where_it_is_gone(
    unfinished: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    record = read_record(unfinished)
    for gone in (str(tmp_path / "gone"), "."):  # a run writes whole paths
        write_record(unfinished, dataclasses.replace(record, cache_location=gone))
        result = run("generate", unfinished, *_TEXT)
        assert result.exit_code == 1
        assert (
            f"which was at {gone} and is no longer there. Give its new location with --cache"
            in result.stderr
        )
    assert run("generate", unfinished, *_TEXT, "--cache", tiny_cache).exit_code == 0
    alone = shutil.copytree(unfinished / "checkpoints/step-0000002", tmp_path / "step-0000002")
    result = run("generate", alone, *_TEXT)
    assert "are in its cache. Give its location with --cache." in result.stderr
    assert run("generate", alone, *_TEXT, "--cache", tiny_cache).exit_code == 0
    write_cache(tmp_path / "other", TARGETS["top_k"])
    result = run("generate", unfinished, *_TEXT, "--cache", tmp_path / "other")
    assert "made by another teacher" in result.stderr


@pytest.mark.parametrize("url", ["https://stranger.example/cache", "memory://cache", "S3://a/b"])
def test_a_url_that_only_the_run_names_is_not_opened(
    unfinished: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """Whoever wrote the run would learn who looks at it, and from where."""
    record = read_record(unfinished)
    write_record(unfinished, dataclasses.replace(record, cache_location=url))
    opened = []
    monkeypatch.setattr("cache_format.open", lambda place, **_: opened.append(place))
    for command in (("generate", unfinished, *_TEXT), ("evaluate", unfinished, "--tasks", "a")):
        monkeypatch.setattr("pipeline.students.lm_eval_harness.require_harness", lambda: None)
        result = run(*command)
        assert result.exit_code == 1
        assert f"{unfinished}/run.json says is at '{url}'" in result.stderr
        assert "give it with --cache." in result.stderr
    assert opened == []
    monkeypatch.undo()
    assert run("generate", unfinished, *_TEXT, "--cache", tiny_cache).exit_code == 0


def test_evaluate_uses_the_newest_checkpoint_of_an_unfinished_run(
    student: tuple[Path, Result], unfinished: Path, tiny_cache: Path
) -> None:
    options = ("--cache", tiny_cache, "--rows", "4", "--json")
    expected = json.loads(run("evaluate", student[0], *options).stdout)
    found = json.loads(run("evaluate", unfinished, *options).stdout)
    assert found["student"] == expected["student"]
    assert found["is_training_cache"]
    assert found["model"] == str(unfinished / "checkpoints/step-0000002")
    assert (found["checkpoint_step"], expected["checkpoint_step"]) == (2, None)
    assert found["notes"][-1] == "The student is unfinished: it is from step 2."


def test_generate_refuses_a_run_without_a_checkpoint(unfinished: Path, tmp_path: Path) -> None:
    shutil.rmtree(unfinished / "checkpoints")
    result = run("generate", unfinished, "--prompt", "a")
    assert result.exit_code == 1
    assert "there is no checkpoint yet" in result.stderr
    assert "its `pipeline train-student` command with --resume" in result.stderr
    result = run("generate", tmp_path, "--prompt", "a")
    assert "neither a run of stage two nor a model directory" in result.stderr


def test_extend_to_and_init_train_a_finished_run_further(
    student: tuple[Path, Result], tiny_cache: Path, recipe: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(student[0], tmp_path / "run"))
    command = ("train-student", "--recipe", recipe, "--cache", tiny_cache)
    refused = run(*command, "--out", out, "--extend-to", "3")
    assert refused.exit_code == 2
    assert "--extend-to continues a run: add --resume" in refused.stderr
    longer = run(*command, "--out", out, "--resume", "--extend-to", "3")
    assert longer.exit_code == 0, longer.output
    assert "step 3/3" in longer.stderr
    begun = run(*command, "--out", tmp_path / "second", "--init", out)
    assert begun.exit_code == 0, begun.output
    assert f"beginning from the weights of {out}/model" in begun.stderr


def test_generate_refuses_a_prompt_that_is_not_utf8(student: tuple[Path, Result]) -> None:
    result = run("generate", student[0], "--prompt", "a\udcff")
    assert result.exit_code == 1
    assert "Error: --prompt: not UTF-8 text: '\\udcff' at character 1." in result.stderr


def test_generate_refuses_an_empty_prompt(student: tuple[Path, Result]) -> None:
    result = run("generate", student[0], "--prompt", "")
    assert result.exit_code == 1
    assert "the prompt is empty" in result.stderr
