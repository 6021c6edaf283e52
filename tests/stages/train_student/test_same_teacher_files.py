"""A run, its checkpoints and its model against files that are not those they were made with."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import cache_format
from cache_format.reader import Cache
from stages.train_student.checkpoints.teacher_identity import teacher_identity
from stages.train_student.export.saved_student import find_checkpoint, publish_checkpoint
from stages.train_student.trainer import run_directory
from stages.train_student.trainer.initial_weights import load_initial_weights
from tests.support.hostile import rehash_teacher
from tests.support.sample_cache import contents
from tests.support.train_configs import tiny_train_config
from tests.support.train_runs import run

CONFIG = tiny_train_config(max_steps=4, save_steps=2, eval_steps=99, save_total_limit=9)
UNLIKE = r"teacher\.files_sha256 was"


@pytest.fixture
def out(tiny_cache: Path, tmp_path: Path) -> Path:
    run(CONFIG, tiny_cache, tmp_path / "run")
    return tmp_path / "run"


def other_embedding(teacher: Path) -> None:
    path = teacher / "embedding.safetensors"
    save_file({n: t.roll(1, 0).contiguous() for n, t in load_file(path).items()}, path)


def other_tokenizer(teacher: Path) -> None:
    path = teacher / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1))


@pytest.fixture(params=[other_embedding, other_tokenizer])
def swapped(tiny_cache: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A cache with the same id and shards, and another file of the teacher."""
    cache = Path(shutil.copytree(tiny_cache, tmp_path / "swapped"))
    request.param(cache / "teacher")
    rehash_teacher(cache)
    assert cache_format.open(cache).cache_id == cache_format.open(tiny_cache).cache_id
    return cache


def test_a_run_with_changed_teacher_files_does_not_resume_and_keeps_its_model(
    out: Path, swapped: Path
) -> None:
    before = contents(out / "model")
    with pytest.raises(ValueError, match=UNLIKE):
        run(CONFIG, swapped, out, resume=True)
    assert contents(out / "model") == before


def test_a_checkpoint_with_changed_teacher_files_is_not_used(
    out: Path, swapped: Path, tmp_path: Path
) -> None:
    cache = cache_format.open(swapped)
    checkpoint, _ = find_checkpoint(out)
    with pytest.raises(ValueError, match=r"made by another teacher .*files_sha256"):
        publish_checkpoint(checkpoint, cache, tmp_path / "model")
    for _ in range(2):  # from the model, then from the checkpoint
        with pytest.raises(ValueError, match=r"made by another teacher .*files_sha256"):
            load_initial_weights(out, CONFIG, cache)
        shutil.rmtree(out / "model", ignore_errors=True)


def test_a_run_without_recorded_teacher_files_resumes(
    tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def older(cache: Cache) -> dict[str, str]:
        return {k: v for k, v in teacher_identity(cache).items() if k != "files_sha256"}

    with monkeypatch.context() as patch:
        patch.setattr(run_directory, "teacher_identity", older)
        run(CONFIG, tiny_cache, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-0000004")
    run(CONFIG, tiny_cache, tmp_path / "run", resume=True)


def remove(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).unlink()


def append(name: str, text: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        with (model / name).open("a") as file:
            file.write(text)

    return change


@pytest.mark.parametrize(
    "damage",
    [
        remove("tokenizer.json"),
        remove("SHA256SUMS"),
        append("modeling_distil_xlstm.py", "\nimport os\n"),
        append("tokenizer_config.json", " "),
        lambda model: os.truncate(model / "model.safetensors", 100),
    ],
)
def test_resuming_a_finished_run_restores_its_missing_model_files(
    out: Path, tiny_cache: Path, damage: Callable[[Path], None]
) -> None:
    before = contents(out / "model")
    damage(out / "model")
    run(CONFIG, tiny_cache, out, resume=True)
    assert contents(out / "model") == before


def test_initial_weights_name_newer_and_skipped_checkpoints(out: Path, tiny_cache: Path) -> None:
    cache = cache_format.open(tiny_cache)
    assert load_initial_weights(out, CONFIG, cache).notes == ()
    (out / "checkpoints" / "step-0000012").mkdir()
    (note,) = load_initial_weights(out, CONFIG, cache).notes
    assert "a checkpoint of step 12, which is newer than this model" in note
    shutil.rmtree(out / "model")
    initial = load_initial_weights(out, CONFIG, cache)
    assert initial.location.endswith("step-0000004")
    assert any("step-0000012" in note and "skipped" in note for note in initial.notes)
