"""Checkpoints: what is damaged in any way is passed over and named, and so is what does not fit."""

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cache_format.errors import UnsupportedFormatError
from cache_format.metadata import sealed_json
from stages.train_student.checkpoints import checkpoint
from stages.train_student.checkpoints.checkpoint import Checkpoint, CheckpointState
from stages.train_student.checkpoints.run_record import RunRecord
from stages.train_student.checkpoints.saved_tensors import require_tensors, restore, tensors_of
from stages.train_student.config import TrainStudentConfig
from stages.train_student.run_files import RUN_FORMAT, parse_run_file, run_file_bytes
from stages.train_student.tracking.metrics import NOTHING_WRITTEN
from stages.train_student.trainer.optimizer_step import _adamw, require_scaler_state
from tests.support.sample_cache import reseal
from tests.support.train_configs import train_config


def state_of(step: int, **changes: Any) -> CheckpointState:
    settings: dict[str, Any] = {
        "step": step,
        "tensors_sha256": "",
        "identity": {"cache_id": "ab", "slstm_at": [0, 2], "max_steps": None, "learning_rate": 0.1},
        "extensions": (),
        "config": dataclasses.asdict(train_config(slstm_at=(1,), seed=3)),
        "scaler": {"scale": 65536.0, "growth_interval": 2000},
        "validation": {"validation/loss": 4.25},
        "validation_is_due": False,
        "metrics": NOTHING_WRITTEN,
    }
    return CheckpointState(**(settings | changes))


def small_model() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Linear(2, 3)
    return model, _adamw(TrainStudentConfig(), list(model.parameters()))


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Of steps 3 and 6."""
    directory = tmp_path / "checkpoints"
    for step in (3, 6):
        tensors = tensors_of(*small_model(), keep=True)
        checkpoint.save(directory, state_of(step), tensors, keep=2)
    return directory


def flipped(data: bytes) -> list[bytes]:
    """``data`` with each of its bits flipped."""
    copies = []
    for position in range(len(data)):
        for bit in range(8):
            copy = bytearray(data)
            copy[position] ^= 1 << bit
            copies.append(bytes(copy))
    return copies


def test_only_checkpoints_of_the_same_run_are_rotated_away(checkpoints: Path) -> None:
    """The directory may be a link that another run uses, too."""
    tensors = tensors_of(*small_model(), keep=True)
    other = state_of(1, identity={"cache_id": "other"})
    checkpoint.save(checkpoints, other, tensors, keep=9)
    (checkpoints / "step-0000002").mkdir()
    (checkpoints / "step-0000002/mine.txt").write_text("not a checkpoint")
    before_a_new_setting = {"cache_id": "ab", "slstm_at": [0, 2], "max_steps": None}
    checkpoint.save(checkpoints, state_of(4, identity=before_a_new_setting), tensors, keep=9)
    checkpoint.save(checkpoints, state_of(9), tensors, keep=1)
    left = sorted(path.name for path in checkpoints.iterdir())
    assert left == ["step-0000001", "step-0000002", "step-0000009"]


def test_a_saved_checkpoint_loads_back_equal(checkpoints: Path) -> None:
    found, problems = checkpoint.load_newest(checkpoints)
    assert found is not None
    digest = found.state.tensors_sha256
    expected = sealed_json.to_plain(state_of(6, tensors_sha256=digest))
    assert sealed_json.to_plain(found.state) == expected
    assert problems == []
    assert checkpoint.config_of(found) == train_config(slstm_at=(1,), seed=3)
    # As of a version with other settings.
    del found.state.config["reader_threads"]
    found.state.config["later"] = 1
    assert checkpoint.config_of(found) == train_config(slstm_at=(1,), seed=3)
    found.state.config["batch_size"] = "x"
    with pytest.raises(ValueError, match=r"state\.json: config\.batch_size: expected int"):
        checkpoint.config_of(found)
    del found.state.config["batch_size"]
    student = found.state.config["student"]
    student["num_blocks"] = "x"
    with pytest.raises(ValueError, match=r"config\.student\.num_blocks: expected int"):
        checkpoint.config_of(found)
    student["kind"] = "later"
    with pytest.raises(ValueError, match=r"config\.student: unknown kind 'later'; the kno"):
        checkpoint.config_of(found)
    del found.state.config["student"]  # of a version whose settings were flat
    with pytest.raises(ValueError, match=r"config\.student: expected an object, found None"):
        checkpoint.config_of(found)


def test_leftovers_of_a_killed_save_are_removed_by_the_next(checkpoints: Path) -> None:
    (checkpoints / ".tmp-step-0000007-abc").mkdir()
    checkpoint.save(checkpoints, state_of(9), tensors_of(*small_model(), keep=True), keep=2)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-0000006", "step-0000009"]


def test_every_flipped_bit_of_the_state_is_detected() -> None:
    data = run_file_bytes(state_of(4))
    for copy in flipped(data):
        with pytest.raises(ValueError, match=r"state\.json"):
            checkpoint.parse_state(copy, Path("state.json"))


def test_every_flipped_bit_of_the_run_record_is_detected() -> None:
    record = RunRecord(identity={"cache_id": "ab", "seed": 3}, cache_location="/data/cache")
    data = run_file_bytes(record)
    assert parse_run_file(RunRecord, data, Path("run.json"), "") == record
    for copy in flipped(data):
        with pytest.raises(ValueError, match=r"run\.json"):
            parse_run_file(RunRecord, copy, Path("run.json"), "")


def sealed(content: Any) -> Callable[[Path], None]:
    """Replaces the state, under a seal that fits."""
    return lambda path: reseal_all(path / "state.json", content)


def reseal_all(file: Path, content: dict[str, Any]) -> None:
    reseal(file, lambda fields: fields.update(content))


def unsealed(text: bytes) -> Callable[[Path], None]:
    return lambda path: discard_result((path / "state.json").write_bytes(text))


def discard_result(_: object) -> None:
    """So that a lambda returns nothing."""


def as_before_seals(path: Path) -> None:
    fields = sealed_json.unseal((path / "state.json").read_bytes(), path, "", RUN_FORMAT)
    (path / "state.json").write_text(json.dumps(fields))


def without_field(path: Path) -> None:
    reseal(path / "state.json", lambda fields: discard_result(fields.pop("scaler")))


def tensor_file(path: Path) -> None:
    """Its hash fits, it is no file of tensors."""
    (path / "tensors.safetensors").write_bytes(b"\xff" * 100)
    reseal_all(
        path / "state.json", {"tensors_sha256": checkpoint._sha256(path / "tensors.safetensors")}
    )


def state_is_a_directory(path: Path) -> None:
    (path / "state.json").unlink()
    (path / "state.json").mkdir()


def only_a_file(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.write_bytes(b"")


def link_to_itself(path: Path) -> None:
    shutil.rmtree(path)
    path.symlink_to(path.name)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (unsealed(b""), "its seal does not match"),
    "a list": (unsealed(b"[]"), "its seal does not match"),
    "no JSON": (unsealed(b"\xff{"), "its seal does not match"),
    "nested": (unsealed(b"[" * 99999), "its seal does not match"),
    "no seal": (unsealed(b'{"step": "x"}'), "it has no seal, or an older version"),
    "before seals": (as_before_seals, "it has no seal, or an older version"),
    "step no number": (sealed({"step": "x"}), "step: expected int, found 'x'"),
    "step is true": (sealed({"step": True}), "step: expected int, found True"),
    "another step": (sealed({"step": 5}), "holds step 5"),
    "identity": (sealed({"identity": []}), "identity: expected dict"),
    "settings": (sealed({"config": []}), "config: expected dict"),
    "scaler": (sealed({"scaler": 3}), "scaler: expected dict"),
    "unknown field": (sealed({"extra": 1}), "extra: not a known field"),
    "missing field": (without_field, "scaler: missing"),
    "no tensors": (lambda path: (path / "tensors.safetensors").unlink(), "No such file"),
    "no state": (lambda path: (path / "state.json").unlink(), "No such file"),
    "a directory": (state_is_a_directory, "Is a directory"),
    "a file": (only_a_file, "Not a directory"),
    "a link to itself": (link_to_itself, "Too many levels of symbolic links"),
    "not safetensors": (tensor_file, "tensors.safetensors: corrupt"),
    "renamed": (
        lambda path: discard_result(path.rename(path.with_name("step-0000009"))),
        "holds step 6",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_with_its_reason(checkpoints: Path, damage: str) -> None:
    spoil, reason = DAMAGES[damage]
    spoil(checkpoints / "step-0000006")
    found, problems = checkpoint.load_newest(checkpoints)
    assert found is not None
    assert found.step == 3
    (problem,) = problems
    with pytest.raises(ValueError, match=reason):
        raise ValueError(problem.reason)
    assert str(problem.path) in problem.reason
    (message,) = checkpoint.set_aside(problems)
    assert message.endswith(f"It is skipped, and was renamed to {problem.path.name}.damaged.")
    assert checkpoint.load_newest(checkpoints)[1] == []


def test_a_checkpoint_damaged_twice_is_set_aside_under_two_names(checkpoints: Path) -> None:
    for _ in range(2):
        only_a_file(checkpoints / "step-0000006")
        checkpoint.set_aside(checkpoint.load_newest(checkpoints)[1])
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        "step-0000003",
        "step-0000006.damaged",
        "step-0000006.damaged-2",
    ]


def test_a_checkpoint_of_another_version_stops_the_run_and_stays(checkpoints: Path) -> None:
    sealed({"format_version": "2.0"})(checkpoints / "step-0000006")
    with pytest.raises(UnsupportedFormatError, match=r"2\.0.* move .*step-0000006 out of this"):
        checkpoint.load_newest(checkpoints)


def drop(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: discard_result(tensors.pop(name))


def put(name: str, tensor: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update({name: tensor})


def without_moments(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.startswith("optimizer.")]:
        del tensors[name]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_moments, "6 missing, such as 'optimizer.bias.exp_avg'"),
        (drop("optimizer.weight.exp_avg_sq"), "1 missing, such as 'optimizer.weight.exp_avg_sq'"),
        (drop("model.bias"), "1 missing, such as 'model.bias'"),
        (put("model.other", torch.ones(1)), "1 not of this student, such as 'model.other'"),
        (put("other", torch.ones(1)), "1 not of this student, such as 'other'"),
        (put("optimizer.weight.max", torch.ones(1)), "not of this student"),
        (put("model.bias", torch.ones(1)), r"model.bias: expected \(\(3,\).*found \(\(1,\)"),
        (put("model.bias", torch.ones(3).half()), "float16"),
        (put("optimizer.bias.step", torch.ones(3)), r"step: expected \(\(\)"),
    ],
)
def test_checkpoints_with_wrong_tensors_are_skipped(
    checkpoints: Path, change: Callable[[dict[str, torch.Tensor]], None], reason: str
) -> None:
    """None is taken for another, and no moment begins anew in silence."""
    path = checkpoints / "step-0000006"
    tensors = load_file(path / "tensors.safetensors")
    change(tensors)
    save_file(tensors, path / "tensors.safetensors")
    digest = checkpoint._sha256(path / "tensors.safetensors")
    reseal_all(path / "state.json", {"tensors_sha256": digest})
    model, optimizer = small_model()

    def check(candidate: Checkpoint) -> None:
        require_tensors(model, optimizer, candidate.tensors)

    found, problems = checkpoint.load_newest(checkpoints, check)
    assert found is not None
    assert found.step == 3
    with pytest.raises(ValueError, match=reason):
        raise ValueError(problems[0].reason)


def test_model_and_optimizer_tensors_round_trip_bitwise() -> None:
    model, optimizer = small_model()
    model(torch.ones(1, 2)).square().sum().backward()
    optimizer.step()
    saved = tensors_of(model, optimizer, keep=True)
    other, of_other = small_model()
    restore(other, of_other, {name: tensor.clone() for name, tensor in saved.items()})
    again = tensors_of(other, of_other, keep=True)
    assert saved.keys() == again.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in saved.items())
    assert float(saved["optimizer.bias.step"]) == 1


def test_preallocated_optimizer_moments_change_no_step() -> None:
    """AdamW begins its own at its first step."""
    torch.manual_seed(3)
    model, optimizer = small_model()
    twin = torch.nn.Linear(2, 3)
    twin.load_state_dict(model.state_dict())
    config = TrainStudentConfig()
    usual = torch.optim.AdamW(
        [
            {"params": [twin.weight], "weight_decay": config.weight_decay},
            {"params": [twin.bias], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        fused=True,
    )
    for _ in range(3):
        for each, its_optimizer in ((model, optimizer), (twin, usual)):
            each(torch.ones(1, 2)).square().sum().backward()
            its_optimizer.step()
            its_optimizer.zero_grad()
    assert torch.equal(model.state_dict()["weight"], twin.weight)
    assert torch.equal(model.state_dict()["bias"], twin.bias)
    for field, value in usual.state[twin.weight].items():
        own = tensors_of(model, optimizer, keep=True)[f"optimizer.weight.{field}"]
        assert torch.equal(own, value), field


@pytest.mark.parametrize(
    "change",
    [
        {"scale": math.nan},
        {"scale": math.inf},
        {"scale": 0.0},
        {"scale": 1},
        {"growth_interval": 2000.0},
        {"_growth_tracker": -1},
        {"other": 1.0},
    ],
)
def test_an_invalid_gradient_scaler_state_is_refused(change: dict[str, Any]) -> None:
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    require_scaler_state(scaler, scaler.state_dict())
    with pytest.raises(ValueError, match="scaler: expected finite numbers"):
        require_scaler_state(scaler, scaler.state_dict() | change)
    with pytest.raises(ValueError, match="scaler: expected finite numbers"):
        require_scaler_state(torch.amp.GradScaler("cpu", enabled=False), scaler.state_dict())


def test_a_state_that_is_no_json_is_not_saved(tmp_path: Path) -> None:
    bad = dataclasses.replace(state_of(1), validation={"loss": math.nan})
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.save(tmp_path, bad, {}, keep=1)
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_could_not_be_read_back_is_not_saved(tmp_path: Path) -> None:
    bad = dataclasses.replace(state_of(1), config={"max_steps": 2**63})
    with pytest.raises(ValueError, match=r"^config\.max_steps: must be an integer of 64 bits"):
        checkpoint.save(tmp_path, bad, {}, keep=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors"])
def test_a_named_pipe_in_a_checkpoint_does_not_block_loading(checkpoints: Path, name: str) -> None:
    file = checkpoints / "step-0000006" / name
    file.unlink()
    os.mkfifo(file)
    found, problems = checkpoint.load_newest(checkpoints)
    assert found is not None
    assert found.step == 3
    assert "not a regular file" in problems[0].reason
