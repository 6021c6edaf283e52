"""Runs beyond their plan: extended, begun from another's weights, with another's checkpoints."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from stages.train_student.checkpoints.run_record import read_record
from stages.train_student.losses.schedules import learning_rate
from stages.train_student.tracking.run_progress import TrainProgress
from stages.train_student.trainer.stopping import StoppedError
from tests.support import train_runs
from tests.support.sample_cache import reseal
from tests.support.train_configs import tiny_train_config
from tests.support.train_runs import metrics, weights

SHORT = {"max_steps": 4, "save_steps": 2, "eval_steps": 99, "save_total_limit": 9}


def run(
    cache: Path,
    out: Path,
    *,
    resume: bool = False,
    init: Path | None = None,
    extend_to: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    **changes: Any,
) -> list[str]:
    """What it said."""
    said: list[str] = []

    def report(progress: TrainProgress) -> None:
        said.append(progress.message)

    train_runs.run(
        tiny_train_config(**(SHORT | changes)),
        cache,
        out,
        resume=resume,
        report=report,
        stop=stop,
        init=init,
        extend_to=extend_to,
    )
    return said


@pytest.fixture(scope="module")
def finished(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps with checkpoints of 2 and 4."""
    out = tmp_path_factory.mktemp("finished") / "run"
    run(tiny_cache, out)
    return out


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def stopped_at(step: int, out: Path) -> Callable[[], bool]:
    return (out / f"checkpoints/step-{step:07d}").exists


def assert_equal_weights(one: Path, other: Path) -> None:
    expected = weights(other)
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, expected[name]), name


def rates(out: Path) -> list[float]:
    return [row["schedule/learning_rate"] for row in metrics(out) if "train/loss" in row]


def test_an_extended_run_keeps_its_metrics_and_continues_bitwise(
    copy: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    before = metrics(copy)
    run(tiny_cache, copy, resume=True, extend_to=8)
    assert metrics(copy)[: len(before)] == before
    config = tiny_train_config(**SHORT)
    assert rates(copy) == [learning_rate(config, step, 4 if step < 4 else 8) for step in range(8)]
    assert json.loads((copy / "model/config.json").read_text())["num_steps"] == 8
    assert "for 8 optimizer steps" in (copy / "model/README.md").read_text()

    interrupted = Path(shutil.copytree(copy, tmp_path / "other"))
    for step in (6, 8):
        shutil.rmtree(interrupted / f"checkpoints/step-{step:07d}")
    shutil.rmtree(interrupted / "model")
    # As if killed after its step 6; and the command is typed without --extend-to.
    said = run(tiny_cache, interrupted, resume=True)
    assert any("step-0000004" in line for line in said)
    assert_equal_weights(interrupted, copy)
    assert metrics(interrupted) == metrics(copy)


def test_an_extended_run_keeps_the_old_model_until_the_new_one_is_published(
    copy: Path, tiny_cache: Path
) -> None:
    before = (copy / "model/model.safetensors").stat().st_mtime_ns
    with pytest.raises(StoppedError):
        run(tiny_cache, copy, resume=True, extend_to=6, stop=lambda: True)
    assert (copy / "model/model.safetensors").stat().st_mtime_ns == before
    assert read_record(copy).extensions[0].to_step == 6
    run(tiny_cache, copy, resume=True)
    assert (copy / "model/model.safetensors").stat().st_mtime_ns != before
    after = (copy / "model/model.safetensors").stat().st_mtime_ns
    run(tiny_cache, copy, resume=True)
    assert (copy / "model/model.safetensors").stat().st_mtime_ns == after
    assert {path.name for path in copy.iterdir()} == {
        *("run.json", "recipe.toml", "metrics.jsonl", "tensorboard", "checkpoints", "model"),
    }


def test_an_extension_without_further_steps_is_refused(copy: Path, tiny_cache: Path) -> None:
    before = (copy / "run.json").read_bytes()
    for step in (3, 4):
        with pytest.raises(ValueError, match=f"extension to step {step}: .*reached step 4"):
            run(tiny_cache, copy, resume=True, extend_to=step)
    with pytest.raises(ValueError, match=r"max_steps was 4 and is 9\..* extend the run"):
        run(tiny_cache, copy, resume=True, max_steps=9)
    assert (copy / "run.json").read_bytes() == before


def test_a_model_directory_of_other_files_is_not_replaced(copy: Path, tiny_cache: Path) -> None:
    shutil.rmtree(copy / "model")
    (copy / "model").mkdir()
    (copy / "model" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="the trained student cannot be written here"):
        run(tiny_cache, copy, resume=True)
    assert (copy / "model" / "notes.txt").read_text() == "mine"


def test_a_checkpoint_of_another_run_is_refused_by_name(
    copy: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    run(tiny_cache, other, seed=5, max_steps=6)
    shutil.copytree(other / "checkpoints/step-0000006", copy / "checkpoints/step-0000006")
    with pytest.raises(
        ValueError, match=r"step-0000006: .*another run: max_steps was 6 and is 4; seed was 5 and"
    ):
        run(tiny_cache, copy, resume=True)
    assert (copy / "checkpoints/step-0000006").is_dir()


def test_a_checkpoint_of_another_cache_is_refused_by_name(copy: Path, tiny_cache: Path) -> None:
    file = copy / "checkpoints/step-0000004/state.json"
    reseal(file, lambda fields: fields["identity"].update(cache_id="0123"))
    with pytest.raises(ValueError, match="cache_id was '0123' and is"):
        run(tiny_cache, copy, resume=True)


def test_a_checkpoint_of_another_extension_is_refused(copy: Path, tiny_cache: Path) -> None:
    record = (copy / "run.json").read_bytes()
    with pytest.raises(StoppedError):
        run(tiny_cache, copy, resume=True, extend_to=9, stop=stopped_at(6, copy))
    (copy / "run.json").write_bytes(record)
    with pytest.raises(ValueError, match=r"step-0000006: .*extensions was .*to_step=9.* is \(\)"):
        run(tiny_cache, copy, resume=True)


@pytest.mark.parametrize(
    "damage",
    [
        {"step": "x"},
        {"validation": []},
        {"scaler": {"scale": 65536.0}},
        {"step": 9},
    ],
)
def test_a_checkpoint_with_an_invalid_state_is_skipped(
    copy: Path, tiny_cache: Path, damage: dict[str, Any]
) -> None:
    reseal(copy / "checkpoints/step-0000004/state.json", lambda fields: fields.update(damage))
    with pytest.raises(StoppedError) as stopped:
        run(tiny_cache, copy, resume=True, stop=lambda: True)
    assert stopped.value.step == 2
    assert (copy / "checkpoints/step-0000004.damaged").exists()


def test_the_new_location_of_a_moved_cache_is_stored(
    copy: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    assert read_record(copy).cache_location == str(tiny_cache)
    moved = Path(shutil.copytree(tiny_cache, tmp_path / "moved"))
    run(moved, copy, resume=True)
    assert read_record(copy).cache_location == str(moved)


def begun(cache: Path, out: Path, init: Path | None, **changes: Any) -> dict[str, torch.Tensor]:
    """The trained weights of a run before its first step."""
    with pytest.raises(StoppedError):
        run(cache, out, init=init, stop=lambda: True, **changes)
    tensors = load_file(out / "checkpoints/step-0000000/tensors.safetensors")
    assert all(not tensors[name].any() for name in tensors if name.startswith("optimizer."))
    return {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")}


@pytest.mark.parametrize("place", [".", "model", "checkpoints/step-0000004", "unfinished"])
def test_a_run_starts_from_the_weights_of_another_run(
    finished: Path, tiny_cache: Path, tmp_path: Path, place: str
) -> None:
    init = finished / place
    if place == "unfinished":
        init = Path(shutil.copytree(finished, tmp_path / "unfinished"))
        shutil.rmtree(init / "model")
    found = begun(tiny_cache, tmp_path / "run", init, seed=9, learning_rate=1e-4, dropout=0.0)
    expected = weights(finished)
    assert found
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
    record = read_record(tmp_path / "run")
    assert len(record.identity["initial_weights_sha256"]) == 64
    assert record.init_location is not None
    assert record.init_location.startswith(str(init.parent if place == "." else init.resolve()))


def test_other_initial_weights_make_another_run(
    finished: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    """Also where it is named by the same path: an unfinished run goes on."""
    out = tmp_path / "run"
    begun(tiny_cache, out, finished / "checkpoints/step-0000002")
    with pytest.raises(
        ValueError, match=r"initial_weights_sha256 was .* and is .*do not set them again"
    ):
        run(tiny_cache, out, init=finished, resume=True)
    run(tiny_cache, out, resume=True)  # the weights are in its checkpoint
    assert (out / "model").exists()
    with pytest.raises(ValueError, match="initial_weights_sha256 was None and is"):
        run(tiny_cache, Path(shutil.copytree(finished, tmp_path / "b")), init=out, resume=True)


def test_without_an_intact_checkpoint_the_initial_weights_are_asked_for(
    finished: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    begun(tiny_cache, out, finished)
    (out / "checkpoints/step-0000000/state.json").write_text("[]")
    with pytest.raises(ValueError, match=f"start over from the weights of {finished}/model"):
        run(tiny_cache, out, resume=True)
    said = run(tiny_cache, out, resume=True, init=finished)
    assert any("beginning from the weights of" in line for line in said)


def test_initial_weights_of_another_architecture_are_refused_by_name(
    finished: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    for place in (finished, finished / "checkpoints/step-0000004"):
        with pytest.raises(
            ValueError, match=r"slstm_at was \(0,\) and is \(1,\); num_heads was 2 and is 4"
        ) as refused:
            run(tiny_cache, tmp_path / "run", init=place, num_heads=4, slstm_at=(1,), seed=3)
        assert "seed" not in str(refused.value)
    assert not (tmp_path / "run" / "run.json").exists()


def test_initial_weights_of_another_teacher_are_refused(finished: Path, tmp_path: Path) -> None:
    from tests.support.student_caches import TARGETS, write_cache

    write_cache(tmp_path / "cache", TARGETS["top_k"])
    with pytest.raises(ValueError, match="made by another teacher"):
        run(tmp_path / "cache", tmp_path / "run", init=finished)


def test_a_run_record_of_an_older_version_is_refused_with_a_next_step(
    copy: Path, tiny_cache: Path
) -> None:
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(record["identity"]))
    with pytest.raises(ValueError, match=r"run\.json: damaged: it has no seal.*initial weights"):
        run(tiny_cache, copy, resume=True)


def test_a_model_with_swapped_weights_is_published_again(
    finished: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    file = out / "model/model.safetensors"
    before = file.read_bytes()
    run(tiny_cache, out, resume=True)
    assert file.read_bytes() == before
    save_file({name: 0 * tensor for name, tensor in load_file(file).items()}, file)
    run(tiny_cache, out, resume=True)
    assert all(torch.equal(load_file(file)[name], load(before)[name]) for name in load(before))


def linked_run(cache: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A run, and a copy of it whose checkpoints are a link to those of the first."""
    first, second = tmp_path / "first", tmp_path / "second"
    run(cache, first)
    shutil.copytree(first, second, ignore=shutil.ignore_patterns("checkpoints", "model"))
    (second / "checkpoints").symlink_to(first / "checkpoints")
    return first, second


def test_checkpoints_of_another_run_are_not_used_through_a_link(
    tiny_cache: Path, tmp_path: Path
) -> None:
    """Saving would delete the older ones, which are the other run's."""
    first, second = linked_run(tiny_cache, tmp_path)
    names = sorted(path.name for path in (first / "checkpoints").iterdir())
    with pytest.raises(ValueError, match=r"second/checkpoints: a symbolic link to .*another run"):
        run(tiny_cache, second, resume=True, extend_to=6, save_total_limit=1)
    (second / "checkpoints").unlink()
    (second / "checkpoints").symlink_to(first)
    with pytest.raises(ValueError, match="a symbolic link"):
        run(tiny_cache, second, resume=True)
    assert sorted(path.name for path in (first / "checkpoints").iterdir()) == names


def test_checkpoints_may_be_a_link_to_another_disk(tiny_cache: Path, tmp_path: Path) -> None:
    first, second = linked_run(tiny_cache, tmp_path)
    (second / "checkpoints").unlink()
    shutil.copytree(first / "checkpoints", tmp_path / "disk")
    (second / "checkpoints").symlink_to(tmp_path / "disk")
    run(tiny_cache, second, resume=True)
    assert (second / "model").is_dir()
    inside = second / "elsewhere"
    shutil.copytree(first / "checkpoints", inside)
    (second / "checkpoints").unlink()
    (second / "checkpoints").symlink_to(inside)
    run(tiny_cache, second, resume=True, extend_to=6)
