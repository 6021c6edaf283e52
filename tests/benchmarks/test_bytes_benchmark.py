"""The table of bytes against students: whose figures it holds, and that none is made twice."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import cache_format
from benchmarks import online
from benchmarks.__main__ import main
from benchmarks.bytes import COMPARED, target_bytes
from tests.support.golden_cache import GOLDEN

_LOSSES = {"online": 3.0, "labels": 4.0, "cache": 3.25}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """The trainings that were run, each a way and its settings; nothing is trained."""
    calls: list[tuple[str, list[str]]] = []

    def train(way: str, work: Path, steps: int, settings: list[str]) -> dict[str, float]:
        calls.append((way, settings))
        seed = float(settings[-1].removeprefix("train_student.seed="))
        loss = _LOSSES[way] + 0.1 * seed
        return {"validation_loss": loss, "validation_kl": loss - 2}

    monkeypatch.setattr(online, "in_new_process", train)
    monkeypatch.setattr(online, "make_cache", lambda *_: None)
    golden = cache_format.open(GOLDEN / "top_k")
    monkeypatch.setattr(cache_format, "open", lambda path: golden)
    return calls


def run(work: Path, *arguments: str) -> str:
    command = ["bytes", "--steps", "2", "--work", str(work), *arguments]
    return CliRunner().invoke(main, command, catch_exceptions=False).stdout


def test_every_kind_has_a_student_for_every_seed(
    tmp_path: Path, trained: list[tuple[str, list[str]]]
) -> None:
    figures = json.loads(run(tmp_path, "--seeds", "2", "--json"))
    rows: list[dict[str, Any]] = figures["rows"]
    assert [row["way"] for row in rows] == ["online", "labels"] + ["cache"] * len(COMPARED)
    assert [row["settings"] for row in rows[2:]] == list(COMPARED)
    assert all(len(row["students"]) == 2 for row in rows)
    assert rows[0]["bytes_per_token"] is None
    assert rows[2]["bytes_per_token"] > 0
    # All kinds have one student before any has two.
    seeds = [settings[-1] for _, settings in trained]
    assert seeds == sorted(seeds)


def test_gain_is_the_share_of_what_the_teacher_in_the_loop_gains(
    tmp_path: Path, trained: list[tuple[str, list[str]]]
) -> None:
    lines = run(tmp_path, "--seeds", "2").splitlines()
    assert lines[1].startswith("teacher in the loop")
    assert lines[1].endswith("100% ±0")
    assert lines[2].endswith(" 0% ±0")
    assert all(line.endswith("75% ±0") for line in lines[3:])
    assert "3.3000 ±0.0707" in lines[3]


def test_compared_settings_may_be_given(
    tmp_path: Path, trained: list[tuple[str, list[str]]]
) -> None:
    kinds = ["--compare", "targets=top_k,top_k=8", "--compare", "targets=hidden,hidden_kl=0.1"]
    figures = json.loads(run(tmp_path, "--seeds", "1", "--json", *kinds))
    settings = [row["settings"] for row in figures["rows"][2:]]
    assert settings == [
        {"targets": "top_k", "top_k": "8"},
        {"targets": "hidden", "hidden_kl": "0.1"},
    ]
    assert "cache_teacher.hidden_kl=0.1" in trained[-1][1]


def test_compared_settings_that_are_none_are_refused(tmp_path: Path) -> None:
    command = ["bytes", "--work", str(tmp_path), "--compare", "top_k"]
    found = CliRunner().invoke(main, command)
    assert found.exit_code == 2
    assert "expected KEY=VALUE" in found.stderr


def test_the_plot_names_all_rows(tmp_path: Path, trained: list[tuple[str, list[str]]]) -> None:
    picture = tmp_path / "curve.svg"
    run(tmp_path / "work", "--seeds", "2", "--plot", str(picture))
    drawn = picture.read_text()
    for name in ("teacher in the loop", "labels alone", "hidden, 0.05, nearest", "top_k, 32"):
        assert name in drawn


def test_what_was_trained_before_is_not_trained_again(
    tmp_path: Path, trained: list[tuple[str, list[str]]]
) -> None:
    first = run(tmp_path, "--seeds", "1")
    num_students = len(trained)
    assert run(tmp_path, "--seeds", "1") == first
    assert len(trained) == num_students
    run(tmp_path, "--seeds", "2")
    assert len(trained) == 2 * num_students


def test_bytes_are_those_of_the_targets_alone() -> None:
    cache = cache_format.open(GOLDEN / "top_k")
    shards = cache.shards("train")
    sizes = [shard.statistics.column_bytes for shard in shards]
    columns = ("num_kept", "kept", "tail_log_mass", "next_logprob")
    expected = sum(size[name] for size in sizes for name in columns)
    assert target_bytes(cache) == expected / sum(shard.num_tokens for shard in shards)
