"""The table of bytes against students: whose figures it holds, and that none is made twice."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import cache_format
from benchmarks import online
from benchmarks.__main__ import main
from benchmarks.bytes import COMPARED, state_bytes, target_bytes
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
    students = json.loads(run(tmp_path, "--seeds", "2", "--json"))["students"]
    assert [row["way"] for row in students] == ["online", "labels"] + ["cache"] * len(COMPARED)
    assert [row["settings"] for row in students[2:]] == list(COMPARED)
    assert all(len(row["students"]) == 2 for row in students)
    assert "bytes_per_token" not in students[0]
    assert students[2]["bytes_per_token"] > students[2]["state_bytes_per_token"] > 0
    assert "commit" in students[2]["students"][1]["environment"]
    # All kinds have one student before any has two.
    seeds = [settings[-1] for _, settings in trained]
    assert seeds == sorted(seeds)


def test_rows_are_ranked_and_compared_with_the_teacher_in_the_loop_in_the_same_seed(
    tmp_path: Path, trained: list[tuple[str, list[str]]]
) -> None:
    result = json.loads(run(tmp_path, "--seeds", "2", "--json"))
    first, *between, last = result["rows"]
    assert first["name"] == "teacher in the loop"
    assert (first["gain"], last["gain"]) == (100, 0)
    assert last["name"] == "labels alone"
    assert last["loss_difference"]["mean"] == pytest.approx(1)
    assert [row["name"] for row in between][:2] == [
        "top_k 32",
        "top_k 32, tail_moment_dim 16",
    ]
    for row in between:
        assert row["loss"]["mean"] == pytest.approx(3.3)
        assert row["loss"]["deviation"] == pytest.approx(0.1 / 2**0.5)
        for name in ("loss_difference", "kl_difference"):
            assert row[name] == {"mean": pytest.approx(0.25), "deviation": pytest.approx(0)}
        for name in ("gain", "kl_gain"):
            assert row[name] == {"mean": pytest.approx(75), "deviation": pytest.approx(0)}
    lines = run(tmp_path, "--seeds", "2").splitlines()
    assert lines[0].startswith("| targets | bytes/token |")
    assert lines[2].startswith("| teacher in the loop |")
    assert "3.3000 ±0.0707" in lines[3]
    assert "75.0 % ±0.0" in lines[3]


def test_a_single_seed_has_no_deviation(
    tmp_path: Path, trained: list[tuple[str, list[str]]]
) -> None:
    assert "±" not in run(tmp_path, "--seeds", "1")


def test_compared_settings_may_be_given(
    tmp_path: Path, trained: list[tuple[str, list[str]]]
) -> None:
    kinds = ["--compare", "targets=top_k,top_k=8", "--compare", "targets=hidden,hidden_kl=0.1"]
    result = json.loads(run(tmp_path, "--seeds", "1", "--json", *kinds))
    settings = [row["settings"] for row in result["students"][2:]]
    assert settings == [
        {"targets": "top_k", "top_k": "8"},
        {"targets": "hidden", "hidden_kl": "0.1"},
    ]
    names = [row["name"] for row in result["rows"][1:-1]]
    assert names == ["top_k 8", "hidden, hidden_kl 0.1"]
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
    for name in (
        *("teacher in the loop", "labels alone", "top_k 32"),
        "hidden, hidden_kl 0.05, nearest",
    ):
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


def test_bytes_are_those_of_the_targets_and_of_hidden_states() -> None:
    cache = cache_format.open(GOLDEN / "top_k")
    shards = cache.shards("train")
    num_tokens = sum(shard.num_tokens for shard in shards)
    for found, columns in (
        (target_bytes(cache), ("num_kept", "kept", "tail_log_mass", "next_logprob")),
        (state_bytes(cache), ("sketch", "sketch_scale")),
    ):
        sizes = [shard.statistics.column_bytes for shard in shards]
        assert found == sum(size[name] for size in sizes for name in columns) / num_tokens > 0
