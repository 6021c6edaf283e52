"""A hybrid student distilled through adapters of low rank, from an alignment to a plain model."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import cache_format
from stages.train_student.export.saved_student import find_checkpoint, publish_checkpoint
from stages.train_student.students.low_rank import is_adapter
from stages.train_student.tracking.run_progress import TrainProgress
from tests.support.command_line import run as run_command
from tests.support.hybrid_runs import NEW, align_config, distill_config, hybrid_cache, lora_config
from tests.support.train_runs import metrics, run, weights


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds ``teacher``, and ``cache`` with its weights."""
    path = tmp_path_factory.mktemp("low-rank")
    hybrid_cache(path)
    return path


@pytest.fixture(scope="module")
def cache(root: Path) -> Path:
    return root / "cache"


@pytest.fixture(scope="module")
def aligned(root: Path) -> Path:
    run(align_config(max_steps=3), root / "cache", root / "aligned")
    return root / "aligned"


@pytest.fixture(scope="module")
def distilled(root: Path, aligned: Path) -> Path:
    """A distillation of 6 steps that began with ``aligned``."""
    run(lora_config(max_steps=6), root / "cache", root / "distilled", init=aligned)
    return root / "distilled"


def is_new(name: str) -> bool:
    return any(f".{part}." in name for part in NEW)


def validation(out: Path, index: int) -> float:
    losses = [row["validation/loss"] for row in metrics(out) if "validation/loss" in row]
    return losses[index]


def test_it_begins_where_the_alignment_ended_and_learns(aligned: Path, distilled: Path) -> None:
    assert validation(distilled, 0) == validation(aligned, -1)
    assert validation(distilled, -1) < validation(distilled, 0) - 0.01


def test_the_published_model_has_plain_weights(root: Path, distilled: Path) -> None:
    teacher, found = load_file(root / "teacher/model.safetensors"), weights(distilled)
    assert {name for name in found if not is_new(name)} == teacher.keys()
    for name, tensor in teacher.items():
        if not name.endswith("_proj.weight"):
            assert torch.equal(found[name], tensor), name
        else:
            assert torch.linalg.matrix_rank(found[name] - tensor, atol=1e-5) == 2, name
    config = json.loads((distilled / "model/config.json").read_text())
    assert config["trained"] == "projections"
    card = (distilled / "model/README.md").read_text()
    assert "parameters were trained, the projections by adapters of low rank, as in" in card


def test_checkpoints_hold_adapters_and_what_is_new(distilled: Path) -> None:
    saved = load_file(distilled / "checkpoints/step-0000006/tensors.safetensors")
    names = {name.removeprefix("model.") for name in saved if name.startswith("model.model.")}
    assert any(map(is_adapter, names))
    assert any(map(is_new, names))
    assert all(is_adapter(name) or is_new(name) for name in names)


def test_a_checkpoint_can_be_published_as_the_model_was(
    cache: Path, distilled: Path, tmp_path: Path
) -> None:
    checkpoint, _ = find_checkpoint(distilled)
    publish_checkpoint(checkpoint, cache_format.open(cache), tmp_path / "model")
    expected, found = weights(distilled), weights(tmp_path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_a_run_that_broke_off_resumes_bitwise(
    cache: Path, aligned: Path, distilled: Path, tmp_path: Path
) -> None:
    def report(progress: TrainProgress) -> None:
        if progress.step == 5:
            raise OSError("killed")

    out = tmp_path / "run"
    with pytest.raises(OSError, match="killed"):
        run(lora_config(max_steps=6), cache, out, init=aligned, report=report)
    run(lora_config(max_steps=6), cache, out, resume=True)
    assert metrics(out) == metrics(distilled)
    expected = weights(distilled)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(out).items())


def test_a_finished_run_that_is_resumed_publishes_nothing_anew(
    cache: Path, distilled: Path
) -> None:
    file = distilled / "model" / "model.safetensors"
    before = file.stat().st_mtime_ns
    run(lora_config(max_steps=6), cache, distilled, resume=True)
    assert file.stat().st_mtime_ns == before


def test_the_published_model_is_the_one_that_was_validated_and_can_be_trained_further(
    cache: Path, distilled: Path, tmp_path: Path
) -> None:
    run(distill_config(max_steps=1), cache, tmp_path / "run", init=distilled)
    begin = validation(tmp_path / "run", 0)
    assert begin == pytest.approx(validation(distilled, -1), abs=1e-4)


def test_more_adapters_go_on_from_its_checkpoint_but_not_from_its_model(
    cache: Path, distilled: Path, tmp_path: Path
) -> None:
    step = distilled / "checkpoints/step-0000006"
    run(lora_config(max_steps=1), cache, tmp_path / "run", init=step)
    assert validation(tmp_path / "run", 0) == validation(distilled, -1)
    with pytest.raises(ValueError, match=r"trained weights, such as \S+, are frozen in this"):
        run(lora_config(max_steps=1), cache, tmp_path / "other", init=distilled)


def test_another_rank_is_another_run(cache: Path, distilled: Path) -> None:
    with pytest.raises(ValueError, match="lora_rank"):
        run(lora_config(max_steps=6, lora_rank=3), cache, distilled, resume=True)


def test_without_peft_the_extra_is_named(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec

    def none_of_peft(name: str) -> Any:
        return None if name == "peft" else find_spec(name)

    monkeypatch.setattr("stages.train_student.students.required_packages.find_spec", none_of_peft)
    expected = "train_student.student.trained: 'lora' needs the package peft.*its extra 'lora'"
    with pytest.raises(ValueError, match=expected):
        run(lora_config(max_steps=6), cache, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run(distill_config(max_steps=1), cache, tmp_path / "run")


def test_an_untrained_student_has_no_adapters(root: Path, tmp_path: Path) -> None:
    result = run_command(
        *("convert", root / "teacher", "--recipe", "hybrid-distill", "--out", tmp_path / "out"),
        *("--set", "train_student.student.trained=lora"),
    )
    assert result.exit_code == 1
    assert "train_student.student.trained: 'lora' is a way to train" in result.stderr


@pytest.mark.parametrize("rank", [0, 2**16 + 1])
def test_an_impossible_rank_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=r"^lora_rank: must be from 1 to 2\^16"):
        lora_config(max_steps=6, lora_rank=rank)
    assert lora_config(max_steps=6, lora_rank=2**16).max_steps == 6
