"""What the benchmark of the targets prints has the promised fields, and agrees with theory."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import target_kinds, targets
from benchmarks.__main__ import main
from pipeline.demo.run import TEACHER


def test_the_targets_benchmark_prints_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "NUM_DOCUMENTS", 60)
    monkeypatch.setattr(targets, "TOP_K", (32,))
    monkeypatch.setattr(targets, "NUM_DRAWS", (50,))
    monkeypatch.setattr(targets, "DRAWN_AT", (1.0, 2.0))
    monkeypatch.setattr(targets, "TEMPERATURES", (1.0, 2.0))
    monkeypatch.setattr(targets, "SETTINGS", ())
    arguments = ["targets", "--json", "--repeats", "3"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    figures = json.loads(result.stdout)
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
    assert figures["kinds"] == []


@pytest.fixture(scope="module")
def kinds(text_corpus: Path) -> list[dict[str, Any]]:
    """What is found of the demo's teacher, over a file of text."""
    arguments = ["targets", "--teacher", str(TEACHER), "--corpus", str(text_corpus), "--rows", "4"]
    settings: tuple[dict[str, Any], ...] = (
        {"targets": "top_k", "top_k": 32},
        {"targets": "top_k", "top_k": 4096},
        {"targets": "sampled", "num_samples": 50},
        {"targets": "top_k+sampled", "top_k": 32, "num_samples": 50},
        {"targets": "hidden", "hidden_kl": 0.2, "hidden_quantization": "nearest"},
        {"targets": "hidden", "hidden_kl": 0.05},
        {"targets": "top_k+hidden", "top_k": 32, "hidden_kl": 0.2},
    )
    for asked in settings:
        arguments += ["--compare", ",".join(f"{key}={value}" for key, value in asked.items())]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target_kinds, "_POSITIONS", 64)
        result = CliRunner().invoke(main, [*arguments, "--json"], catch_exceptions=False)
    figures = json.loads(result.stdout)
    assert figures.keys() == {"kinds"}
    found: list[dict[str, Any]] = figures["kinds"]
    for row, asked in zip(found, settings, strict=True):
        assert {"targets": row["kind"], **row["settings"]} == asked
    return found


def test_the_kl_of_kept_ids_is_that_of_the_tail_alone(kinds: list[dict[str, Any]]) -> None:
    top_k, everything = kinds[:2]
    # With every id kept, what is lost is the rounding of probabilities.
    for name in ("self_kl_t1", "self_kl_t1_5", "self_kl_t2"):
        assert 0 <= everything[name] < 0.05 < top_k[name] < 1.5
    assert top_k["bytes_per_token"] < everything["bytes_per_token"]


def test_the_kl_of_hidden_states_falls_with_hidden_kl(
    kinds: list[dict[str, Any]],
) -> None:
    coarse, fine = kinds[4:6]
    for row in (coarse, fine):
        # Fitted to two other rows, so not met exactly.
        assert row["self_kl_t1"] == pytest.approx(row["settings"]["hidden_kl"], rel=0.8)
    assert coarse["self_kl_t1"] > coarse["self_kl_t1_5"] > coarse["self_kl_t2"] > 0
    assert fine["self_kl_t1"] < coarse["self_kl_t1"]
    assert fine["bytes_per_token"] > coarse["bytes_per_token"]


def test_states_beside_kept_ids_lose_less_than_either(kinds: list[dict[str, Any]]) -> None:
    top_k, states, both = kinds[0], kinds[4], kinds[6]
    for name in ("self_kl_t1", "self_kl_t1_5", "self_kl_t2"):
        assert 0 < both[name] < min(top_k[name], states[name])
    assert both["bytes_per_token"] > max(top_k["bytes_per_token"], states["bytes_per_token"])


def test_the_kl_of_draws_is_known_at_the_temperatures_of_the_cache(
    kinds: list[dict[str, Any]],
) -> None:
    sampled, both = kinds[2:4]
    assert sampled["self_kl_t1"] > 0
    assert sampled["self_kl_t1_5"] is sampled["self_kl_t2"] is None
    assert 0 < both["self_kl_t1"] < sampled["self_kl_t1"]
    assert both["self_kl_t2"] > 0
