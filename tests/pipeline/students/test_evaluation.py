"""`pipeline evaluate --cache`: figures against full logits, refusals, table and JSON."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

import cache_format
from pipeline.commands.evaluate import evaluate
from pipeline.students.evaluation import EvalOptions, evaluate_student, evaluation_text
from stages.train_student.data.mixture import mix
from stages.train_student.modeling.distil_xlstm.modeling import DistilXLSTMForCausalLM
from stages.train_student.run import train_student
from tests.support import tiny
from tests.support.command_line import run as invoke_main
from tests.support.student_caches import TARGETS, write_cache
from tests.support.students import publish_student
from tests.support.train_configs import tiny_train_config
from tests.support.train_runs import run as train_run

ALL = EvalOptions(num_rows=None, batch_size=3, device="cpu")


@pytest.fixture(scope="module")
def run(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_student(tiny_cache, tmp_path_factory.mktemp("run"))


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(evaluate, [str(argument) for argument in arguments])


def evaluated(run: Path, cache: Path, extent: EvalOptions = ALL) -> dict[str, Any]:
    return evaluate_student(run, cache_format.open(cache), extent, lambda *_: None)


def expected_accuracy(run: Path, cache_path: Path) -> tuple[float, float, int]:
    """The student's and the teacher's accuracy, row by row from full logits; and positions."""
    student: Any = DistilXLSTMForCausalLM.from_pretrained(run / "model").eval()
    cache = cache_format.open(cache_path)
    num_right, num_teacher_right, num_scored = 0, 0, 0
    for _, row in cache.iter_rows("validation"):
        ids = torch.from_numpy(row.token_ids.astype("int64"))
        starts = torch.zeros(1, len(ids) - 1, dtype=torch.bool)
        starts[0, [start for start in row.document_starts.tolist() if start < len(ids) - 1]] = True
        with torch.no_grad():
            choices = student(ids[None, :-1], is_document_start=starts).logits[0].argmax(1)
        firsts = (row.kept.num_ids.cumsum() - row.kept.num_ids).tolist()
        for t in row.scored().nonzero()[0].tolist():
            num_scored += 1
            num_right += int(choices[t] == ids[t + 1])
            num_teacher_right += int(row.kept.ids[firsts[t]] == ids[t + 1])
    return num_right / num_scored, num_teacher_right / num_scored, num_scored


def test_evaluation_reports_student_and_teacher_side_by_side(run: Path, tiny_cache: Path) -> None:
    found = evaluated(run, tiny_cache)
    accuracy, teacher_accuracy, num_scored = expected_accuracy(run, tiny_cache)
    assert found["positions"] == num_scored
    assert found["rows"] == found["rows_in_split"] > 3
    assert found["student"]["accuracy"] == pytest.approx(accuracy)
    assert found["teacher"]["accuracy"] == pytest.approx(teacher_accuracy)
    assert 0 < found["student"]["ece"] < 1
    assert found["teacher"]["kl"] == 0
    assert found["student"]["kl"] > 0
    assert found["is_training_cache"]
    assert found["notes"] == ["KL is over the kept ids and, as one outcome, everything else."]


def test_the_teacher_s_confidence_is_that_of_its_first_choice(tiny_cache: Path, run: Path) -> None:
    """Its calibration error, from what the cache says of each position."""
    found = evaluated(run, tiny_cache)
    sums = torch.zeros(2, 15, dtype=torch.float64)
    for _, row in cache_format.open(tiny_cache).iter_rows("validation"):
        ends = row.kept.num_ids.cumsum().tolist()
        for t in row.scored().nonzero()[0].tolist():
            first = ends[t] - int(row.kept.num_ids[t])
            gaps = torch.from_numpy(row.kept.gaps[first : ends[t]]).double()
            scores = torch.cat((-gaps, torch.tensor([row.kept.tail_log_mass[t, -1]]).double()))
            confidence = float(scores.softmax(0)[0])
            number = min(int(confidence * 15), 14)
            sums[0, number] += confidence
            sums[1, number] += float(row.kept.ids[first] == row.token_ids[t + 1])
    error = float((sums[0] - sums[1]).abs().sum()) / found["positions"]
    assert found["teacher"]["ece"] == pytest.approx(error, rel=1e-5)


def test_a_finished_run_has_the_figures_of_its_last_validation(
    tiny_cache: Path, tmp_path: Path
) -> None:
    config = tiny_train_config(max_steps=2, validation_rows=10_000)
    metrics = train_run(config, tiny_cache, tmp_path / "run")
    found = evaluated(tmp_path / "run", tiny_cache)
    for key, value in found["student"].items():
        assert value == pytest.approx(metrics[f"validation/{key}"], rel=1e-6)
    for key in ("loss", "perplexity", "accuracy", "ece"):
        assert found["teacher"][key] == metrics[f"validation/teacher_{key}"]


def test_num_rows_limits_the_evaluation_and_progress_counts_to_it(
    run: Path, tiny_cache: Path
) -> None:
    told: list[tuple[int, int]] = []
    extent = EvalOptions(num_rows=5, batch_size=2, device="cpu")
    found = evaluate_student(
        run, cache_format.open(tiny_cache), extent, lambda *both: told.append(both)
    )
    assert found["rows"] == 5
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_evaluate_prints_a_table_or_json(run: Path, tiny_cache: Path) -> None:
    text = invoke(run, "--cache", tiny_cache, "--rows", "4")
    assert text.exit_code == 0, text.output
    lines = text.stdout.splitlines()
    assert lines[0].split() == [*("loss", "perplexity", "KL(T=1)", "agreement", "accuracy", "ECE")]
    assert lines[1].startswith("teacher")
    assert lines[2].startswith("student")
    assert "evaluate: 4 of 4 rows" in text.stderr
    found = json.loads(invoke(run / "model", "--cache", tiny_cache, "--rows", "4", "--json").stdout)
    assert f"{found['student']['loss']:.4f}" == lines[2].split()[1]
    assert f"{found['positions']:,} scored positions" in lines[4]


def test_several_caches_are_evaluated_one_by_one_and_together(
    run: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    texts = tiny.tiny_texts(40, seed=5)
    math = tiny.cache_texts(tiny_cache.parent / "teacher", tmp_path / "math", texts)
    result = invoke(run, "--cache", tiny_cache, "--cache", math, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    each = [evaluated(run, cache) for cache in (tiny_cache, math)]
    for shown, alone in zip(found["caches"], each, strict=True):
        assert shown["cache_id"] == alone["cache_id"]
        assert shown["student"] == pytest.approx(alone["student"])
    total = sum(one["student"]["loss"] * one["positions"] for one in each)
    assert found["student"]["loss"] == pytest.approx(total / found["positions"])
    text = invoke(run, "--cache", tiny_cache, "--cache", math).stdout
    assert f"{tiny_cache}: " in text
    assert f"{math}: " in text
    assert f"All 2 caches, {found['positions']:,} scored positions:" in text


def test_each_cache_of_a_mixture_is_one_that_the_student_was_trained_on(
    tiny_cache: Path, tmp_path: Path
) -> None:
    texts = tiny.tiny_texts(40, seed=5)
    math = tiny.cache_texts(tiny_cache.parent / "teacher", tmp_path / "math", texts)
    mixture = mix([cache_format.open(tiny_cache), cache_format.open(math)])
    train_student(tiny_train_config(max_steps=1), mixture, tmp_path / "run")
    for cache in (tiny_cache, math):
        found = evaluated(tmp_path / "run", cache)
        assert found["is_training_cache"]
        assert len(found["notes"]) == 1
    shutil.rmtree(tmp_path / "run/model")  # an unfinished one finds what it needs, and says so, too
    result = invoke(tmp_path / "run", "--cache", math, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["is_training_cache"]


def test_figures_unknown_for_sampled_targets_are_left_out(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", TARGETS["sampled"])
    run = publish_student(tmp_path / "cache", tmp_path / "run")
    found = evaluated(run, tmp_path / "cache")
    assert found["teacher"].keys() == {"loss", "perplexity"}
    assert found["student"].keys() == {
        *("loss", "perplexity", "kl", "agreement", "accuracy", "ece")
    }
    assert "cannot be computed from samples" in found["notes"][0]
    assert evaluation_text(found).splitlines()[1].split()[3:] == ["–", "–", "–", "–"]
    assert cache.spec.targets.kind == "sampled"


def test_another_cache_of_the_same_teacher_is_marked(
    run: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    teacher = tiny_cache.parent / "teacher"
    from stages.cache_teacher.run import cache_teacher

    cache_teacher(
        tiny.tiny_cache_config(teacher, tiny_cache.parent / "corpus.parquet", top_k=5),
        tmp_path / "cache",
        recipe_toml="",
        report=lambda _: None,
    )
    found = evaluated(run, tmp_path / "cache")
    assert not found["is_training_cache"]
    assert "not the cache that the student was trained on" in found["notes"][-1]
    assert found["student"]["loss"] == pytest.approx(evaluated(run, tiny_cache)["student"]["loss"])


def test_a_cache_of_another_teacher_is_refused(run: Path, tmp_path: Path) -> None:
    write_cache(tmp_path / "cache", TARGETS["top_k"])
    with pytest.raises(
        ValueError, match=r"made by another teacher .*weights_sha256 .* and .*tokenizer_sha256"
    ):
        evaluated(run, tmp_path / "cache")


def test_a_model_that_names_no_teacher_is_refused(
    run: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(run / "model", tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"teacher": None}))
    with pytest.raises(ValueError, match=r"config\.json: does not record the student's teacher"):
        evaluated(model, tiny_cache)


def test_a_model_that_is_no_student_is_refused(tiny_cache: Path) -> None:
    with pytest.raises(ValueError, match="no student of this package: expected model_type 'distil"):
        evaluated(tiny_cache.parent / "teacher", tiny_cache)


def test_evaluate_without_cache_and_tasks_is_a_usage_error(run: Path) -> None:
    result = invoke(run)
    assert result.exit_code == 2
    assert "give --cache, --tasks, --needle, or several of them" in result.stderr


@pytest.fixture
def too_large(run: Path, tmp_path: Path) -> Path:
    """A model whose finite weights overflow."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    file = copy / "model" / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if "norm" in name:
            tensor.fill_(torch.finfo(tensor.dtype).max)
    save_file(tensors, file)
    return copy


def test_a_student_that_overflows_has_no_figures(too_large: Path, tiny_cache: Path) -> None:
    result = invoke_main("evaluate", too_large, "--cache", tiny_cache, "--json")
    assert result.exit_code == 1
    assert f"{too_large}/model: cannot be evaluated: validation/loss is nan" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_a_student_that_overflows_generates_nothing(too_large: Path, temperature: str) -> None:
    result = invoke_main("generate", too_large, "--prompt", "the", "--temperature", temperature)
    assert result.exit_code == 1
    assert "the student's logits after 2 tokens are NaN or infinite" in result.stderr


def test_a_perplexity_beyond_floats_is_left_out(
    run: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.train_student.evaluation.divergence._exp", lambda _: float("inf"))
    found = evaluated(run, tiny_cache)
    assert "perplexity" not in found["student"]
    assert "loss" in found["student"]
    assert "–" in evaluation_text(found)
