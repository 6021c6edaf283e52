"""What a run began with: recorded when it begins, kept when it goes on, told by its student."""

import json
from pathlib import Path

import pytest

import cache_format
from stages.train_student.checkpoints.checkpoint import load_newest
from stages.train_student.checkpoints.run_record import read_record
from stages.train_student.checkpoints.saved_tensors import weights_sha256
from stages.train_student.trainer.initial_weights import load_initial_weights
from tests.support.train_configs import tiny_train_config
from tests.support.train_runs import run


def origin(out: Path) -> str:
    found = read_record(out).origin_sha256
    assert found is not None
    return found


@pytest.fixture(scope="module")
def first(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("first") / "run"
    run(tiny_train_config(max_steps=2), tiny_cache, out)
    return out


def test_the_origin_is_in_the_record_the_checkpoint_and_the_student(first: Path) -> None:
    checkpoint, _ = load_newest(first / "checkpoints")
    assert checkpoint is not None
    config = json.loads((first / "model/config.json").read_text())
    assert origin(first) == checkpoint.state.origin_sha256 == config["origin_sha256"]


def test_runs_of_one_seed_or_one_initial_student_have_one_origin(
    first: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    run(tiny_train_config(max_steps=1, learning_rate=0.01), tiny_cache, tmp_path / "same")
    assert origin(tmp_path / "same") == origin(first)
    run(tiny_train_config(max_steps=1, seed=5), tiny_cache, tmp_path / "seed")
    assert origin(tmp_path / "seed") != origin(first)
    for seed in range(2):
        config = tiny_train_config(max_steps=1, seed=seed)
        run(config, tiny_cache, tmp_path / f"init{seed}", init=first)
        weights = load_initial_weights(first, config, cache_format.open(tiny_cache)).weights
        assert origin(tmp_path / f"init{seed}") == weights_sha256(sorted(weights.items()))


def test_a_resumed_run_keeps_its_origin(first: Path, tiny_cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = tiny_train_config(max_steps=2)
    run(config, tiny_cache, out)
    run(config, tiny_cache, out, resume=True, extend_to=4)
    assert origin(out) == origin(first)
    config_json = json.loads((out / "model/config.json").read_text())
    assert (config_json["num_steps"], config_json["origin_sha256"]) == (4, origin(first))
