"""Trying again: how often, when it is given up, and what is not tried again."""

from collections.abc import Callable

import pytest

from cache_format.storage.retry import retrying


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made."""
    pauses: list[float] = []
    monkeypatch.setattr("cache_format.storage.retry.time.sleep", pauses.append)
    return pauses


def failing(times: int, error: Exception) -> Callable[[], int]:
    """An action that fails so often, then returns how often it was called."""
    calls = 0

    def action() -> int:
        nonlocal calls
        calls += 1
        if calls <= times:
            raise error
        return calls

    return action


def tried(action: Callable[[], int]) -> int:
    return retrying(
        action,
        (1.0, 3.0),
        may_pass=lambda error: isinstance(error, OSError),
        given_up=lambda error: RuntimeError(f"given up: {error}"),
    )


@pytest.mark.parametrize("times", [0, 1, 2])
def test_a_transient_failure_is_retried_after_growing_pauses(
    slept: list[float], times: int
) -> None:
    assert tried(failing(times, OSError("cut"))) == times + 1
    assert slept == [1.0, 3.0][:times]


def test_a_persistent_failure_is_given_up_with_its_cause(slept: list[float]) -> None:
    with pytest.raises(RuntimeError, match="given up: cut") as caught:
        tried(failing(3, OSError("cut")))
    assert isinstance(caught.value.__cause__, OSError)
    assert slept == [1.0, 3.0]


def test_a_non_retryable_failure_is_raised_at_once(slept: list[float]) -> None:
    with pytest.raises(ValueError, match="no"):
        tried(failing(1, ValueError("no")))
    assert slept == []
