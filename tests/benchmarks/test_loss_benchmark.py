"""The loss benchmark: its contenders take the same loss, and it prints what the README quotes."""

import json
import mmap
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks import loss as benchmark

SIZE = benchmark.Size(
    tokens=64,
    vocabulary=900,
    width=16,
    top_k=8,
    chunk=16,
    moment_dim=4,
    precision="fp32",
    device="cpu",
)


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled is tested elsewhere, and compiling takes longer than all of this file."""
    monkeypatch.setattr("stages.compute.compiling.has_compiler", lambda device: False)


pytestmark = pytest.mark.filterwarnings("ignore:.*without torch.compile:RuntimeWarning")


def test_the_compared_losses_have_equal_values_and_gradients() -> None:
    inputs = benchmark.make_inputs(SIZE).first(SIZE.tokens)
    assert all(len(ids.unique()) == SIZE.top_k for ids in inputs.targets.kept_ids_NK)
    dense, (dense_gradient,) = benchmark.dense_run(inputs)
    ours, (gradient,) = benchmark.contender("ours", SIZE)(inputs)
    torch.testing.assert_close(ours, dense, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, dense_gradient, rtol=1e-4, atol=1e-6)


def test_the_loss_benchmark_prints_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def here(function: Any, *arguments: Any) -> Any:
        return function(*arguments)

    monkeypatch.setattr(benchmark, "_in_new_process", here)
    monkeypatch.setattr(benchmark, "PEERS", ("cut_cross_entropy_that_is_not_there",))
    sizes = (
        "--tokens=64",
        "--vocabulary=900",
        "--width=16",
        "--top-k=8",
        "--chunk=16",
        "--moment-dim=4",
    )
    result = CliRunner().invoke(benchmark.loss, [*sizes, "--repeats=1", "--json"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert {
        "peak_bytes_ratio_to_dense",
        "time_ratio_to_dense",
        "kl_time_ratio_to_labels_only",
        "kl_cpu_time_ratio_to_labels_only",
        "cpu_time_ratio_to_with_moments",
    } < set(figures)
    assert all(figures[f"{name}_seconds"] >= 0 for name in benchmark.OURS)
    reason = figures["cut_cross_entropy_that_is_not_there_not_run"]
    assert reason == "No module named 'cut_cross_entropy_that_is_not_there'"


def test_peak_memory_of_a_run_is_what_it_holds_at_once() -> None:
    def run(inputs: benchmark.Inputs) -> None:
        if len(inputs.labels_N) == SIZE.tokens:
            # Not from the heap, of which a process may have that much to spare.
            with mmap.mmap(-1, 48 << 20) as held:
                for start in range(0, len(held), mmap.PAGESIZE):
                    held[start] = 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "contender", lambda name, size: run)
        found = benchmark._peak_bytes("any", SIZE)
    assert 40 << 20 < found < 60 << 20
