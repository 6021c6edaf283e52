"""Stage two as a whole: trains from the cache alone, resumes bitwise, fails with a next step."""

import errno
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import cache_format
from stages.train_student.checkpoints import checkpoint
from stages.train_student.checkpoints.checkpoint import load_newest
from stages.train_student.checkpoints.run_record import read_record
from stages.train_student.losses.objective import Objective
from stages.train_student.run import train_student
from stages.train_student.tracking.metric_labels import STEP, VALIDATION
from stages.train_student.tracking.metrics import MetricsLog
from stages.train_student.tracking.run_progress import TrainProgress
from stages.train_student.trainer.stopping import StopNow, StoppedError, StopRequest
from stages.train_student.trainer.training_run import NonFiniteLossError
from tests.support.sample_cache import reseal
from tests.support.train_configs import tiny_train_config
from tests.support.train_runs import metrics, run, weights


class Stopped(Exception):
    """Raised by a report to end a run as a kill would."""


def stop_after(step: int) -> Callable[[TrainProgress], None]:
    def report(progress: TrainProgress) -> None:
        if progress.event == "step" and progress.step == step:
            raise Stopped

    return report


def run_killed(
    server: ForkServerContext,
    cache: Path,
    out: Path,
    *,
    step: int | None = None,
    micro_batch: int | None = None,
) -> None:
    """Train in a process that kills itself right after ``step``, or in its ``micro_batch``-th."""
    process = server.Process(target=train_and_die, args=(cache, out, step, micro_batch))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def train_and_die(cache: Path, out: Path, step: int | None, micro_batch: int | None) -> None:
    """See ``run_killed``."""
    terms, calls = Objective.micro_batch_loss, 0

    def report(progress: TrainProgress) -> None:
        if progress.event == "step" and progress.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def dying(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal calls
        calls += 1
        if calls == micro_batch:
            os.kill(os.getpid(), signal.SIGKILL)
        return terms(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Objective, "micro_batch_loss", dying)
        run(tiny_train_config(), cache, out, resume=True, report=report)


@pytest.fixture(scope="module")
def whole(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run(tiny_train_config(), tiny_cache, out)
    return out


def test_every_metric_with_a_label_is_written(whole: Path) -> None:
    lines = (whole / "metrics.jsonl").read_text().splitlines()
    written = {name for line in lines for name in json.loads(line)}
    labelled = {label.key for label in (*STEP, *VALIDATION)}
    assert labelled - written == {
        "speed/mfu",  # nobody knows what a processor could do
        *("train/state_mse", "train/layer_mse"),  # off
        *("train/alignment", "validation/alignment", "validation/mlstm_share"),  # of hybrids
    }


def test_training_lowers_the_loss_and_leaves_a_complete_run(whole: Path) -> None:
    validations = [row for row in metrics(whole) if "validation/loss" in row]
    assert [row["step"] for row in validations] == [0, 4, 8, 9]
    assert validations[-1]["validation/loss"] < validations[0]["validation/loss"]
    assert validations[-1]["validation/kl"] < validations[0]["validation/kl"]
    assert {path.name for path in whole.iterdir()} == {
        *("run.json", "recipe.toml", "metrics.jsonl", "tensorboard", "checkpoints", "model"),
    }
    checkpoints = sorted(path.name for path in (whole / "checkpoints").iterdir())
    assert checkpoints == ["step-0000006", "step-0000009"]


@pytest.mark.parametrize("stops", [(1,), (4,), (7,), (2, 5, 8)])
def test_a_killed_run_continues_bitwise(
    fork_server: ForkServerContext,
    whole: Path,
    tiny_cache: Path,
    tmp_path: Path,
    stops: tuple[int, ...],
) -> None:
    out = tmp_path / "run"
    for step in stops:
        run_killed(fork_server, tiny_cache, out, step=step)
    run(tiny_train_config(), tiny_cache, out, resume=True)
    expected = weights(whole)
    for name, tensor in weights(out).items():
        assert torch.equal(tensor, expected[name]), name
    assert metrics(out) == metrics(whole)


def test_a_run_killed_between_micro_batches_continues_bitwise(
    fork_server: ForkServerContext, whole: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    """Each attempt dies at the second of a step's two micro-batches, later than the one before."""
    out = tmp_path / "run"
    for micro_batch in (2, 10, 8, 4):  # every third step has a checkpoint
        run_killed(fork_server, tiny_cache, out, micro_batch=micro_batch)
    run(tiny_train_config(), tiny_cache, out, resume=True)
    expected = weights(whole)
    for name, tensor in weights(out).items():
        assert torch.equal(tensor, expected[name]), name
    assert metrics(out) == metrics(whole)


def test_stopping_at_a_saved_step_keeps_its_checkpoint(tiny_cache: Path, tmp_path: Path) -> None:
    """Also on a disk that has no room for another."""
    out, config = tmp_path / "run", tiny_train_config(save_total_limit=1)
    with pytest.raises(StoppedError):
        run(config, tiny_cache, out, stop=lambda: (out / "checkpoints/step-0000003").exists())
    path = out / "checkpoints" / "step-0000003" / "tensors.safetensors"
    before = path.stat()
    with pytest.raises(StoppedError):
        run(config, tiny_cache, out, resume=True, stop=lambda: True)
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-0000003"]
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize(
    ("place", "last", "step"),
    [
        ("losses.objective.Objective.micro_batch_loss", 1, 0),  # a micro-batch; a step has two
        (
            "losses.objective.Objective.micro_batch_loss",
            13,
            6,
        ),  # where there is a checkpoint already
        ("losses.objective.Objective.micro_batch_loss", 17, 8),
        (
            "losses.objective.Objective.micro_batch_loss",
            18,
            9,
        ),  # of the last step, which is finished
        ("evaluation.calibration.first_choices", 1, 0),  # a batch of validation, which has three
        ("evaluation.calibration.first_choices", 4, 4),
        ("evaluation.calibration.first_choices", 11, 9),
    ],
)
def test_a_stop_within_a_step_resumes_bitwise(
    whole: Path, tiny_cache: Path, tmp_path: Path, place: str, last: int, step: int
) -> None:
    """The run is asked to stop while it is at the ``last`` call of ``place``."""
    calls, out = 0, tmp_path / "run"
    original = resolve_name(f"stages.train_student.{place}")

    def counting(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"stages.train_student.{place}", counting)
        with pytest.raises(StoppedError) as stopped:
            run(tiny_train_config(), tiny_cache, out, stop=lambda: calls >= last)
    assert calls == last
    assert stopped.value.step == step
    newest, _ = load_newest(out / "checkpoints")
    assert newest is not None
    assert newest.step == step
    run(tiny_train_config(), tiny_cache, out, resume=True)
    run(tiny_train_config(), tiny_cache, out, resume=True)  # a validation is not written twice
    expected = weights(whole)
    for name, tensor in weights(out).items():
        assert torch.equal(tensor, expected[name]), name
    assert metrics(out) == metrics(whole)


def test_an_interrupted_micro_batch_leaves_the_previous_step(
    whole: Path, tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception from a handler, in the midst of a backward pass of the fourth step."""
    backward, calls, out = torch.Tensor.backward, 0, tmp_path / "run"

    def interrupted(loss: torch.Tensor) -> None:
        nonlocal calls
        calls += 1
        backward(loss)  # type: ignore[no-untyped-call]
        if calls == 8:
            raise StopNow

    monkeypatch.setattr(torch.Tensor, "backward", interrupted)
    with pytest.raises(StoppedError):
        run(tiny_train_config(), tiny_cache, out)
    monkeypatch.undo()
    run(tiny_train_config(), tiny_cache, out, resume=True)
    assert metrics(out) == metrics(whole)


def test_optimizer_steps_metrics_and_checkpoints_are_never_interrupted(
    tiny_cache: Path, tmp_path: Path
) -> None:
    """Steps of the optimizer, figures and checkpoints lie outside the blocks that may be."""
    inside = False

    @contextmanager
    def interruptible() -> Iterator[None]:
        nonlocal inside
        inside = True
        yield
        inside = False

    def outside(name: str, method: Any) -> Any:
        def called(*arguments: Any, **settings: Any) -> Any:
            assert not inside, name
            seen.add(name)
            return method(*arguments, **settings)

        return called

    seen: set[str] = set()
    places = ((torch.optim.AdamW, "step"), (MetricsLog, "write"), (checkpoint, "save"))
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in places:
            patch.setattr(owner, name, outside(name, getattr(owner, name)))
        train_student(
            tiny_train_config(max_steps=2),
            cache_format.open(tiny_cache),
            tmp_path / "run",
            resume=False,
            recipe_toml="",
            report=lambda _: None,
            stop=StopRequest(interruptible=interruptible),
        )
    assert seen == {"step", "write", "save"}


def test_a_stop_before_the_run_exists_leaves_no_checkpoint(
    tiny_cache: Path, tmp_path: Path
) -> None:
    @contextmanager
    def interruptible() -> Iterator[None]:
        raise StopNow
        yield

    with pytest.raises(StopNow):
        train_student(
            tiny_train_config(),
            cache_format.open(tiny_cache),
            tmp_path / "run",
            resume=False,
            recipe_toml="",
            report=lambda _: None,
            stop=StopRequest(interruptible=interruptible),
        )
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_damaged_checkpoints_do_not_count_among_those_kept(
    tiny_cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        run(tiny_train_config(), tiny_cache, out, report=stop_after(8))
    (out / "checkpoints" / "step-0000006" / "tensors.safetensors").write_bytes(b"short")
    stop_at = out / "checkpoints" / "step-0000004"
    with pytest.raises(StoppedError):
        run(
            tiny_train_config(save_total_limit=1, save_steps=4),
            tiny_cache,
            out,
            resume=True,
            stop=stop_at.exists,
        )
    names = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert names == ["step-0000004", "step-0000006.damaged"]


def test_a_checkpoint_that_cannot_be_read_stops_the_run(
    tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be whole: going on from the one before would throw away what it holds."""
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        run(tiny_train_config(), tiny_cache, out, report=stop_after(7))

    def refuse(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as broken:
        broken.setattr("stages.train_student.checkpoints.checkpoint._sha256", refuse)
        with pytest.raises(OSError, match="Input/output error"):
            run(tiny_train_config(), tiny_cache, out, resume=True)
    assert (out / "checkpoints" / "step-0000006").exists()


def test_two_runs_cannot_share_a_directory(tiny_cache: Path, tmp_path: Path) -> None:
    def report(progress: TrainProgress) -> None:
        if progress.event == "step":
            with pytest.raises(ValueError, match="another process is training into it"):
                run(tiny_train_config(), tiny_cache, tmp_path / "run", resume=True)

    run(tiny_train_config(max_steps=1), tiny_cache, tmp_path / "run", report=report)


def test_fp16_resumes_bitwise_with_its_gradient_scaler(tiny_cache: Path, tmp_path: Path) -> None:
    config = tiny_train_config(precision="fp16", max_steps=4, save_steps=2, eval_steps=9)
    run(config, tiny_cache, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(config, tiny_cache, tmp_path / "run", report=stop_after(3))
    run(config, tiny_cache, tmp_path / "run", resume=True)
    expected = weights(tmp_path / "whole")
    for name, tensor in weights(tmp_path / "run").items():
        assert torch.equal(tensor, expected[name]), name


def test_sampled_softmax_resumes_bitwise(whole: Path, tiny_cache: Path, tmp_path: Path) -> None:
    config = tiny_train_config(sampled_softmax_size=32, save_steps=4)
    run(config, tiny_cache, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(config, tiny_cache, tmp_path / "run", report=stop_after(6))
    run(config, tiny_cache, tmp_path / "run", resume=True)
    expected = weights(tmp_path / "whole")
    for name, tensor in weights(tmp_path / "run").items():
        assert torch.equal(tensor, expected[name]), name
    drawn, exact = metrics(tmp_path / "whole"), metrics(whole)
    assert metrics(tmp_path / "run") == drawn
    assert drawn[0] == exact[0]  # validation, which draws nothing
    assert drawn[1]["train/loss"] != exact[1]["train/loss"]
    assert drawn[1]["train/loss"] == pytest.approx(exact[1]["train/loss"], rel=0.1)
    assert drawn[-1]["validation/kl"] < drawn[0]["validation/kl"]
    with pytest.raises(ValueError, match="sampled_softmax_size was 32 and is None"):
        run(tiny_train_config(), tiny_cache, tmp_path / "run", resume=True)


def test_the_teacher_is_never_loaded(
    tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher's directory is gone, and no other causal LM may be built or loaded."""
    from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2ForCausalLM

    alone = tmp_path / "elsewhere" / "cache"
    shutil.copytree(tiny_cache, alone)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a teacher was loaded")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.setattr(Qwen2ForCausalLM, "__init__", refuse)
    run(tiny_train_config(max_steps=1), alone, tmp_path / "run")
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_the_result_is_an_ordinary_hugging_face_model(whole: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(whole / "model")
    model = AutoModelForCausalLM.from_pretrained(whole / "model")
    inputs = tokenizer("the teacher and the student", return_tensors="pt")
    outputs: Any = model.generate(inputs["input_ids"], max_new_tokens=5, do_sample=False)  # type: ignore[misc]
    assert outputs.shape[1] == inputs["input_ids"].shape[1] + 5


def test_labels_alone_need_no_sketch(tiny_cache: Path, tmp_path: Path) -> None:
    alone = {"alpha_start": 0.0, "alpha_end": 0.0, "beta_start": 0.0, "beta_end": 0.0}
    run(tiny_train_config(max_steps=2, **alone), tiny_cache, tmp_path / "run")
    step = next(row for row in metrics(tmp_path / "run") if "train/loss" in row)
    assert step["train/loss"] == pytest.approx(step["train/cross_entropy"])
    assert step["train/kl"] == step["train/frobenius"] == 0.0


def test_accumulation_equals_one_large_batch(tiny_cache: Path, tmp_path: Path) -> None:
    losses = []
    for name, sizes in (("a", (4, 1)), ("b", (1, 4))):
        config = tiny_train_config(
            max_steps=2,
            dropout=0.0,
            beta_start=0.0,  # L_F is a root over a micro-batch, so it alone depends on the split
            beta_end=0.0,
            batch_size=sizes[0],
            gradient_accumulation_steps=sizes[1],
        )
        run(config, tiny_cache, tmp_path / name)
        losses.append(
            [row["train/loss"] for row in metrics(tmp_path / name) if "train/loss" in row]
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_non_finite_loss_names_step_and_checkpoint(tiny_cache: Path, tmp_path: Path) -> None:
    def poison(progress: TrainProgress) -> None:
        if progress.event == "checkpoint":
            path = next((tmp_path / "run" / "checkpoints").iterdir())
            spoil(path)
            raise Stopped

    def spoil(path: Path) -> None:
        from safetensors.torch import save_file

        tensors = load_file(path / "tensors.safetensors")
        name = next(name for name in tensors if name.startswith("model."))
        tensors[name] = torch.full_like(tensors[name], float("nan"))
        save_file(tensors, path / "tensors.safetensors")
        digest = hashlib.sha256((path / "tensors.safetensors").read_bytes()).hexdigest()
        reseal(path / "state.json", lambda fields: fields.update(tensors_sha256=digest))

    with pytest.raises(Stopped):
        run(tiny_train_config(), tiny_cache, tmp_path / "run", report=poison)
    with pytest.raises(NonFiniteLossError, match=r"loss of step 3 is nan.*step-0000003"):
        run(tiny_train_config(), tiny_cache, tmp_path / "run", resume=True)


def test_a_loss_that_is_not_finite_from_the_start_is_not_blamed_on_the_learning_rate(
    tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages.train_student.losses.objective import Objective

    terms = Objective.micro_batch_loss

    def poisoned(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        loss, sums = terms(*arguments)
        return loss * torch.nan, sums * torch.nan

    monkeypatch.setattr(Objective, "micro_batch_loss", poisoned)
    with pytest.raises(NonFiniteLossError, match=r"of step 0 is nan.*Nothing has been learned yet"):
        run(tiny_train_config(), tiny_cache, tmp_path / "run")


def test_a_persistently_non_finite_fp16_gradient_stops_the_run(
    tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scaler skips such a step and halves its scale, 16 times at most."""
    from stages.train_student.losses.objective import Objective

    terms = Objective.micro_batch_loss

    def poisoned(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        loss, sums = terms(*arguments)
        return loss + (loss * 0).sqrt() * 0, sums  # finite, with a gradient of 0/0

    monkeypatch.setattr(Objective, "micro_batch_loss", poisoned)
    config = tiny_train_config(precision="fp16", max_steps=40, num_train_epochs=40, save_steps=100)
    steps: list[int] = []
    with pytest.raises(NonFiniteLossError, match=r"gradient norm of step 1\d is nan"):
        run(config, tiny_cache, tmp_path / "run", report=lambda p: steps.append(p.step))
    assert max(steps) == 16
    assert not (tmp_path / "run" / "model").exists()
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_an_absent_device_is_refused_before_anything_is_written(
    tiny_cache: Path, tmp_path: Path
) -> None:
    for device, message in (("cuda", "PyTorch sees 0 GPUs"), ("gpu", "is not auto, cpu")):
        with pytest.raises(ValueError, match=message):
            run(tiny_train_config(device=device), tiny_cache, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_corrupt_checkpoint_is_named_and_the_one_before_is_used(
    whole: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        run(tiny_train_config(), tiny_cache, out, report=stop_after(8))
    newest = out / "checkpoints" / "step-0000006" / "tensors.safetensors"
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    messages: list[str] = []
    run(
        tiny_train_config(),
        tiny_cache,
        out,
        resume=True,
        report=lambda p: messages.append(p.message),
    )
    assert any("step-0000006" in message and "corrupt" in message for message in messages)
    assert any("resuming from" in message and "step-0000003" in message for message in messages)
    expected = weights(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(out).items())
    remade, problems = load_newest(out / "checkpoints")
    assert remade is not None
    assert (remade.step, problems) == (9, [])
    remade_before_it = out / "checkpoints" / "step-0000006"
    assert json.loads((remade_before_it / "state.json").read_text())["tensors_sha256"] == (
        hashlib.sha256((remade_before_it / "tensors.safetensors").read_bytes()).hexdigest()
    )


def test_a_directory_with_a_run_needs_resume_and_the_same_settings(
    whole: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="Resume it, or choose"):
        run(tiny_train_config(), tiny_cache, whole)
    with pytest.raises(ValueError, match=r"learning_rate was 0\.003 and is 0\.1"):
        run(tiny_train_config(learning_rate=0.1), tiny_cache, whole, resume=True)
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="is not empty, and not a run"):
        run(tiny_train_config(), tiny_cache, tmp_path)


def test_a_run_without_a_checkpoint_may_restart_with_other_settings(
    tiny_cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        run(tiny_train_config(batch_size=4), tiny_cache, tmp_path / "run", report=stop_after(2))
    run(tiny_train_config(max_steps=2), tiny_cache, tmp_path / "run")
    assert [row["step"] for row in metrics(tmp_path / "run")] == [0, 1, 2, 2]
    assert read_record(tmp_path / "run").identity["batch_size"] == 2


def test_resuming_a_finished_student_with_other_settings_is_refused(
    whole: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    shutil.rmtree(out / "checkpoints")
    with pytest.raises(ValueError, match="finished student without checkpoints"):
        run(tiny_train_config(seed=5), tiny_cache, out, resume=True)


def test_a_damaged_run_record_is_named(whole: Path, tiny_cache: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    for text in ("", "[]", "{}"):
        (out / "run.json").write_text(text)
        with pytest.raises(ValueError, match=r"run\.json: damaged"):
            run(tiny_train_config(), tiny_cache, out, resume=True)


def test_checkpoint_and_model_files_have_default_permissions(whole: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    for path in whole.rglob("*.safetensors"):
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask, path


def test_a_run_keeps_to_its_rows_when_the_cache_is_extended(tmp_path: Path) -> None:
    from stages.cache_teacher.run import cache_teacher
    from tests.support import tiny

    cache = tiny.tiny_cache(tmp_path, num_tokens=700)
    config = tiny_train_config(batch_size=1, gradient_accumulation_steps=1)
    run(config, cache, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(config, cache, tmp_path / "run", report=stop_after(4))
    longer = tiny.tiny_cache_config(
        tmp_path / "teacher", tmp_path / "corpus.parquet", num_tokens=1400
    )
    cache_teacher(longer, cache, recipe_toml="# tiny\n", report=lambda _: None)
    run(config, cache, tmp_path / "run", resume=True)
    expected = weights(tmp_path / "whole")
    assert all(
        torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "run").items()
    )


@pytest.mark.parametrize(
    ("changes", "temperatures"),
    [
        ({"targets": "sampled", "num_samples": 20, "sampling_temperature": 4 / 3}, (4 / 3, 4 / 3)),
        ({"targets": "top_k+sampled", "num_samples": 20, "top_p": 0.7}, (2.0, 1.0)),
        ({"targets": "hidden"}, (4.0, 1.0)),
        ({"targets": "top_k+hidden", "hidden_kl": 0.3}, (2.0, 1.0)),
        ({"tail_moment_dim": 6, "top_k": 4}, (2.0, 1.0)),
        ({"targets": "top_k+sampled", "num_samples": 9, "tail_moment_dim": 32}, (1.6, 1.1)),
        ({"hidden_projection": "pca", "hidden_states": "last"}, (2.0, 1.0)),
        ({"hidden_states": "random_layers:1"}, (2.0, 1.0)),
    ],
    ids=[
        *("sampled", "top_k+sampled", "hidden", "top_k+hidden", "moment", "draws and moment"),
        *("pca", "random layers"),
    ],
)
def test_a_student_trains_on_every_kind_of_target_of_stage_one(
    tmp_path: Path, changes: dict[str, Any], temperatures: tuple[float, float]
) -> None:
    from tests.support import tiny

    cache = tiny.tiny_cache(tmp_path, 40, **changes)
    start, end = temperatures
    config = tiny_train_config(
        temperature_start=start, temperature_end=end, max_steps=15, dropout=0.0, eval_steps=15
    )
    out = tmp_path / "run"
    run(config, cache, out)
    first, last = (row for row in metrics(out) if "validation/kl" in row)
    assert last["validation/kl"] < 0.95 * first["validation/kl"]
    assert last["validation/loss"] < first["validation/loss"]
    frobenius = [row["train/frobenius"] for row in metrics(out) if "train/frobenius" in row]
    assert sum(frobenius[-3:]) < sum(frobenius[:3])


def test_several_hidden_states_do_not_disturb_a_student_without_a_frobenius_term(
    tmp_path: Path,
) -> None:
    from tests.support import tiny

    config = tiny_train_config(beta_start=0.0, beta_end=0.0, max_steps=3)
    trained = []
    for name in ("mean_over_layers", "each:1,2"):
        cache = tiny.tiny_cache(tmp_path / name, 40, hidden_states=name)
        run(config, cache, tmp_path / name / "run")
        trained.append(weights(tmp_path / name / "run"))
    assert trained[0].keys() == trained[1].keys()
    assert all(torch.equal(tensor, trained[1][name]) for name, tensor in trained[0].items())


def test_settings_that_the_cache_cannot_serve_are_refused_at_once(
    tiny_cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"holds temperatures from 1 to 2, the recipe asks for 3"):
        run(tiny_train_config(temperature_start=3.0), tiny_cache, tmp_path / "run")
    with pytest.raises(ValueError, match="fewer than one step's 800"):
        run(
            tiny_train_config(batch_size=200, gradient_accumulation_steps=4),
            tiny_cache,
            tmp_path / "run2",
        )
    assert not (tmp_path / "run").exists()
