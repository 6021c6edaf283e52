"""What the benchmark of the targets prints has the promised fields, and agrees with theory."""

import json

import pytest
from click.testing import CliRunner

from benchmarks import targets
from benchmarks.__main__ import main


def test_the_targets_benchmark_prints_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "NUM_DOCUMENTS", 60)
    monkeypatch.setattr(targets, "TOP_K", (32,))
    monkeypatch.setattr(targets, "NUM_DRAWS", (50,))
    monkeypatch.setattr(targets, "DRAWN_AT", (1.0, 2.0))
    monkeypatch.setattr(targets, "TEMPERATURES", (1.0, 2.0))
    arguments = ["targets", "--json", "--repeats", "3"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    figures = json.loads(result.output)
    assert 0.1 < figures["student_kl_nats"]["1"] < 1.0
    assert figures["interpolation_error_nats"]["max_k32"] < 0.002
    by_kind = {(row["kind"], row["sampling_temperature"]): row for row in figures["targets"]}
    top_k = by_kind["top_k", None]["at_temperature"]
    both = by_kind["top_k+sampled", 1.0]["at_temperature"]
    alone = by_kind["sampled", 1.0]["at_temperature"]
    assert top_k["1"]["noise"] < 1e-4
    assert 0.03 < top_k["1"]["bias"] < top_k["2"]["bias"] < 1
    assert both["1"]["bias"] < 0.3 * top_k["1"]["bias"]
    assert both["1"]["noise"] < 0.7 * alone["1"]["noise"]
    assert alone.keys() == {"1"}  # samples serve their own temperature
    hotter = by_kind["top_k+sampled", 2.0]["at_temperature"]
    assert both["1"]["noise"] < hotter["1"]["noise"]
    assert both["2"]["noise"] > hotter["2"]["noise"]
    bytes_of = {key: row["bytes_per_token"] for key, row in by_kind.items()}
    assert bytes_of["sampled", 1.0] < bytes_of["top_k+sampled", 1.0]
    assert bytes_of["top_k", None] < bytes_of["top_k+sampled", 1.0]
    assert set(figures["excess_noise_by_draw_temperature"]) == {"1", "2"}
