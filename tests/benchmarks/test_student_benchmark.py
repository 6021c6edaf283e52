"""What the student's benchmark prints has the promised fields and plausible values."""

import json

import torch
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.alternating import median_seconds, peak_allocated_bytes


def test_the_student_benchmark_prints_its_figures() -> None:
    sizes = {
        "width": "32",
        "positions": "24",
        "batch": "2",
        "head-width": "8",
        "mlstm-lengths": "24,1100",
        "stack-widths": "32,64",
        "stack-positions": "16",
        "stack-batch": "1",
        "generation-width": "32",
        "contexts": "16,600",
        "repeats": "1",
    }
    arguments = [word for name, value in sizes.items() for word in (f"--{name}", value)]
    result = CliRunner().invoke(main, ["student", "--json", *arguments], catch_exceptions=False)
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["slstm_speedup_over_vanilla"] > 0.1
    assert figures["slstm_peak_bytes_ratio"] < 0.5
    assert figures["mlstm_over_one_chunk"]["peak_bytes_ratio"]["24"] == 1.0
    assert figures["mlstm_over_one_chunk"]["peak_bytes_ratio"]["1100"] < 0.3
    for width in ("32", "64"):
        rates = figures["tokens_per_s"][width]
        assert min(rates[name] for name in ("slstm_block", "mlstm_block", "stack")) > 0
    assert 0.2 < figures["generation_time_ratio_600_to_16"] < 5
    assert len(set(figures["generation_state_bytes"].values())) == 1


def test_peak_memory_counts_what_is_allocated_at_once() -> None:
    def run() -> None:
        first = torch.empty(1000)
        del first
        second = torch.empty(500)
        third = torch.zeros(700)
        del second, third

    assert 4 * 1200 <= peak_allocated_bytes(run) <= 4 * 1200 + 64
    assert peak_allocated_bytes(lambda: None) == 0


def test_contenders_are_timed_alternately() -> None:
    order: list[str] = []
    found = median_seconds({name: lambda name=name: order.append(name) for name in "ab"}, 3)  # type: ignore[misc]
    assert order == ["a", "b"] * 4
    assert found.keys() == {"a", "b"}
