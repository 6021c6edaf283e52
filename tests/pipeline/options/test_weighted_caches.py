"""``--cache CACHE=WEIGHT``: what is a weight, and what belongs to the name."""

from pathlib import Path

import click
import pytest

from pipeline.options.weighted_caches import WeightedCache, WeightedCacheLocation, weights_of
from tests.support.command_line import run


def convert(value: str) -> WeightedCache:
    found: WeightedCache = WeightedCacheLocation().convert(value, None, None)
    return found


@pytest.fixture(autouse=True)
def directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("web", "web=0.4", "a=b"):
        Path(name).mkdir()


@pytest.mark.parametrize(
    ("value", "place", "weight"),
    [
        ("web", "web", None),
        ("web=0.6", "web", 0.6),
        ("web=3", "web", 3.0),
        ("web=.5", "web", 0.5),
        ("web=1e-3", "web", 0.001),
        ("web=0.4", "web=0.4", None),  # a directory of that name wins
        ("web=0.4=0.6", "web=0.4", 0.6),
        ("./web=0.6", "./web", 0.6),
        ("a=b", "a=b", None),
        ("a=b=2", "a=b", 2.0),
    ],
)
def test_a_number_after_the_last_equals_sign_is_a_weight(
    value: str, place: str, weight: float | None
) -> None:
    assert convert(value) == WeightedCache(place=Path(place), weight=weight)


@pytest.mark.parametrize(
    ("value", "place", "weight"),
    [("s3://bucket/web", "s3://bucket/web", None), ("s3://b/web=0.4", "s3://b/web", 0.4)],
)
def test_urls_may_have_weights(value: str, place: str, weight: float | None) -> None:
    assert convert(value) == WeightedCache(place=place, weight=weight)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("web=0,4", "'0,4' is no weight: expected a number such as 0.4"),
        ("web=-1", "'-1' is no weight"),
        ("web=nan", "'nan' is no weight"),
        ("web=", "'' is no weight"),
        ("web=0", "a weight must be above 0"),
        ("web=1e999", "a weight must be above 0"),
        ("gone=0.4", "'gone' does not exist"),
        ("gone", "'gone' does not exist"),
        ("gone=x", "'gone=x' does not exist"),
    ],
)
def test_what_is_no_cache_or_no_weight_is_refused(value: str, message: str) -> None:
    with pytest.raises(click.BadParameter, match=message):
        convert(value)


def test_weights_are_given_to_all_caches_or_to_none() -> None:
    one, other = convert("web=0.6"), convert("a=b")
    assert weights_of([one, one]) == (0.6, 0.6)
    assert weights_of([other, other]) is None
    with pytest.raises(click.UsageError, match="--cache a=b has no weight, but another has"):
        weights_of([one, other])


def test_the_command_refuses_caches_with_and_without_weights() -> None:
    result = run(
        *("train-student", "--recipe", "demo", "--out", "run"),
        *("--cache", "web=0.6", "--cache", "a=b"),
    )
    assert result.exit_code == 2
    assert "a=b has no weight" in result.stderr
