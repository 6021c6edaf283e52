"""The precision of a run where the recipe leaves it open: the run's own, or the machine's."""

from pathlib import Path

import pytest
import torch

import cache_format
from stages.train_student.checkpoints.run_record import read_record
from stages.train_student.preflight import check_early
from stages.train_student.trainer.precision import choose_precision
from stages.train_student.trainer.stopping import StoppedError
from tests.support.half_precision_cpus import set_cpu
from tests.support.train_configs import tiny_train_config
from tests.support.train_runs import run

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("bf16", "device", "precision"),
    [
        (True, "cpu", "bf16"),
        (False, "cpu", "fp32"),
        (True, "cuda", "fp16"),
        (False, "cuda", "fp16"),
    ],
)
def test_auto_picks_the_precision_the_device_is_fast_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bf16: bool, device: str, precision: str
) -> None:
    set_cpu(monkeypatch, bf16=bf16)
    choice = choose_precision("auto", tmp_path, torch.device(device))
    assert choice.precision == precision
    assert bool(choice.sentence) == (precision == "fp32")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_given_slow_precision_is_kept_with_a_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, precision: str
) -> None:
    set_cpu(monkeypatch, bf16=False)
    choice = choose_precision(precision, tmp_path, CPU)  # type: ignore[arg-type]
    assert choice.precision == precision
    assert f"precision is {precision}, for which this CPU has no instr" in choice.sentence
    set_cpu(monkeypatch, bf16=True, fp16=True)
    assert choose_precision(precision, tmp_path, CPU).sentence == ""


def test_a_run_keeps_its_precision_on_every_machine(
    tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = tiny_train_config(precision="auto", max_steps=2), tmp_path / "run"
    set_cpu(monkeypatch, bf16=False)
    with pytest.raises(StoppedError):
        run(config, tiny_cache, out, stop=lambda: (out / "metrics.jsonl").exists())
    assert read_record(out).identity["precision"] == "fp32"
    set_cpu(monkeypatch, bf16=True)
    run(config, tiny_cache, out, resume=True)
    assert read_record(out).identity["precision"] == "fp32"
    with pytest.raises(ValueError, match="precision was 'fp32' and is 'bf16'"):
        run(tiny_train_config(precision="bf16", max_steps=2), tiny_cache, out, resume=True)


def test_the_preflight_check_uses_the_precision_that_the_run_chose(
    tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = tiny_train_config(precision="auto", max_steps=1), tmp_path / "run"
    set_cpu(monkeypatch, bf16=False)
    run(config, tiny_cache, out)
    check_early(config, cache_format.open(tiny_cache), out, resume=True, online=False)
