"""When a cache pays off: the arithmetic, the seconds of a cache, and what the benchmarks print."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import online, timed_cache
from benchmarks.__main__ import main
from benchmarks.break_even import NUMBERS_OF_RUNS, RunCosts, costs_per_token, pays_off
from benchmarks.trainings import Way


@pytest.mark.parametrize(
    ("cache", "from_cache", "in_loop", "expected"),
    [
        (0.0, 1.0, 2.0, 1),
        (10.0, 1.0, 11.0, 1),  # as long at one run
        (10.5, 1.0, 11.0, 2),
        (30.0, 4.0, 6.5, 12),
        (30.0, 4.0, 4.0, None),
        (30.0, 5.0, 4.0, None),
    ],
)
def test_break_even_is_the_least_number_of_runs_that_costs_no_more(
    cache: float, from_cache: float, in_loop: float, expected: int | None
) -> None:
    costs = RunCosts(cache=cache, run_from_cache=from_cache, run_online=in_loop)
    assert costs.break_even == expected
    cheaper = [n for n in range(1, 100) if costs.totals(n)[0] <= costs.totals(n)[1]]
    assert (cheaper[0] if cheaper else None) == expected


def test_words_say_from_which_run_on_a_cache_pays_off() -> None:
    many, one, never = (
        RunCosts(cache=10.0, run_from_cache=1.0, run_online=end) for end in (3.0, 20.0, 1.0)
    )
    assert pays_off(many) == "the cache pays off from 5 runs on"
    assert pays_off(one) == "the cache pays off from the first run on"
    assert "never" in pays_off(never)


def test_totals_are_those_of_one_cache_and_many_runs() -> None:
    figures = RunCosts(cache=10.0, run_from_cache=1.0, run_online=3.0).figures()
    assert figures["from_cache_total_seconds"]["4"] == 14.0
    assert figures["online_total_seconds"]["4"] == 12.0
    assert list(figures["online_total_seconds"]) == [str(n) for n in NUMBERS_OF_RUNS]


def test_of_speeds_the_cost_of_a_token_counts() -> None:
    costs = costs_per_token(cached=100.0, from_cache=200.0, online=50.0)
    assert costs.totals(3) == pytest.approx((0.025, 0.06))
    arguments = ["break-even", "--cached", "100", "--from-cache", "200", "--online", "50"]
    text = CliRunner().invoke(main, arguments).stdout
    assert "the cache pays off from the first run on" in text
    figures = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert figures["break_even_runs"] == 1
    assert figures["ratio"]["1"] == 0.75


@pytest.mark.parametrize("speed", ["0", "-1", "nan", "inf"])
def test_a_speed_that_is_none_is_refused(speed: str) -> None:
    arguments = ["break-even", "--cached", speed, "--from-cache", "200", "--online", "50"]
    found = CliRunner().invoke(main, arguments)
    assert found.exit_code == 2
    assert "--cached" in found.stderr


def _making(num_tokens: int, num_made: int) -> Any:
    return lambda: (SimpleNamespace(num_tokens=num_tokens), num_made)


def test_seconds_of_a_cache_are_kept_and_add_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.0, 5.0, 100.0, 103.0, 200.0, 201.0])
    monkeypatch.setattr(timed_cache, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    assert timed_cache.timed(tmp_path, _making(70, 70)) == 5.0
    assert timed_cache.timed(tmp_path, _making(100, 30)) == 8.0  # a larger budget
    assert timed_cache.timed(tmp_path, _making(100, 0)) == 8.0  # is there: no time is added


def test_seconds_are_unknown_where_tokens_were_made_unseen(tmp_path: Path) -> None:
    assert timed_cache.timed(tmp_path / "none", _making(100, 0)) is None
    assert timed_cache.timed(tmp_path, _making(100, 60)) is None


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings have figures at once."""

    def train(way: Way, *_: object) -> dict[str, float]:
        found = {"validation_loss": 3.0, "validation_kl": 1.0, "validation_agreement": 0.5}
        speed = 50.0 if way == "online" else 100.0
        return {**found, "tokens_per_s": speed, "seconds": 1e4 / speed, "peak_bytes": 2.0**30}

    monkeypatch.setattr(online, "in_new_process", train)


@pytest.mark.usefixtures("trained")
def test_online_prints_what_runs_cost_with_the_seconds_of_the_cache(
    tmp_path: Path, text_corpus: Path
) -> None:
    texts = [json.loads(line)["text"][:4000] for line in text_corpus.read_text().splitlines()]
    corpus = tmp_path / "short.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = [f"corpus={corpus}", "compile=off", "documents_per_unit=1", "validation_every=2"]
    words = [word for text in settings for word in ("--set", f"cache_teacher.{text}")]
    arguments = ["online", "--steps", "2", "--work", str(tmp_path), *words]
    first = CliRunner().invoke(main, [*arguments, "--json"], catch_exceptions=False)
    costs = json.loads(first.stdout)["break_even"]
    assert costs["measured"]["cache_seconds"] > 0
    assert costs["measured"]["run_from_cache_seconds"] == 100.0
    assert costs["measured"]["run_online_seconds"] == 200.0
    one_pass = costs["one_pass"]
    assert one_pass["run_online_seconds"] == 2 * one_pass["run_from_cache_seconds"] > 0
    # The same cache is taken, with its seconds.
    text = CliRunner().invoke(main, arguments, catch_exceptions=False).stdout
    assert f"the cache took {costs['measured']['cache_seconds']:,.1f} s" in text
    assert "runs                           1         2         4         8        16" in text
    assert "the cache pays off from" in text
    (tmp_path / "cache-seconds.json").unlink()
    text = CliRunner().invoke(main, arguments, catch_exceptions=False).stdout
    assert "Take an empty --work" in text
