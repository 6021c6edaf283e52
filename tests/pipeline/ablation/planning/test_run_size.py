"""Steps, tokens, time and bytes of runs before they are trained."""

from pathlib import Path

import pytest

import cache_format
from pipeline.ablation.planning.run_size import (
    Measured,
    RunSize,
    measured,
    run_size,
    total_bytes,
    total_seconds,
)
from tests.support.run_directories import write_run
from tests.support.train_configs import tiny_train_config


def test_steps_and_tokens_are_those_of_the_run(tiny_cache: Path) -> None:
    cache = cache_format.open(tiny_cache)
    length, num_rows = cache.spec.sequence_length, cache.num_rows("train")
    size = run_size(tiny_train_config(), cache)  # 9 steps of 4 rows, validated at 0, 4, 8, 9
    assert (size.num_steps, size.tokens) == (9, 9 * 4 * length)
    assert size.validation_tokens == 4 * 6 * length
    whole = run_size(tiny_train_config(max_steps=None, num_train_epochs=3), cache)
    assert whole.num_steps == num_rows // 4 * 3
    with pytest.raises(ValueError, match="fewer than one step's"):
        run_size(tiny_train_config(batch_size=10_000), cache)


def test_a_token_of_validation_is_a_third_of_one_of_training() -> None:
    size = RunSize(num_steps=10, tokens_per_step=100, validation_tokens=600)
    assert Measured(tokens_per_second=100.0).seconds(size) == pytest.approx(12.0)
    assert Measured().seconds(size) is None


def test_runs_are_packed_into_slots_in_their_order() -> None:
    assert total_seconds([], 2) == 0.0
    assert total_seconds([5.0, 1.0, 1.0, 1.0], 2) == 5.0
    assert total_seconds([1.0, 1.0, 5.0], 2) == 6.0
    assert total_seconds([1.0, 2.0], 1) == 3.0


def test_bytes_are_those_of_the_model_and_of_one_checkpoint_more_than_is_kept() -> None:
    config = tiny_train_config(save_total_limit=2)
    found = Measured(model_bytes=7, checkpoint_bytes=100)
    assert total_bytes([config, config], [found, None]) == 307


def test_a_run_tells_its_speed_and_size(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    checkpoint = run / "checkpoints/step-0000008"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_bytes(b"x" * 50)
    found = measured(run)
    assert found is not None
    assert found.tokens_per_second == pytest.approx(64.0)
    assert (found.model_bytes, found.checkpoint_bytes) == (2, 50)
    assert measured(tmp_path) is None
