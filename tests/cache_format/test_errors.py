"""What an error keeps of its next step."""

import pickle

from cache_format.errors import Action, AdvisedError, CorruptShardError, NextStep


def test_the_next_step_ends_the_message_and_is_kept() -> None:
    step = NextStep("Do y.", Action.MERGE, settings={"a.b": 1})
    for error in (
        AdvisedError("x: wrong.", step),
        pickle.loads(pickle.dumps(CorruptShardError("x: wrong.", step))),
    ):
        assert str(error) == "x: wrong. Do y."
        assert (error.problem, error.next_step) == ("x: wrong.", "Do y.")
        assert (error.next_step.actions, error.next_step.settings) == ((Action.MERGE,), {"a.b": 1})


def test_an_error_without_a_next_step_is_its_message() -> None:
    assert str(AdvisedError("x: wrong.")) == "x: wrong."
    assert str(AdvisedError("x:\n  wrong\n", "Do y.")) == "x:\n  wrong\nDo y."
