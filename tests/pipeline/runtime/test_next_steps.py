"""How the command line says what an error advises."""

import pytest

from cache_format.errors import Action, AdvisedError, CorruptFileError, NextStep
from cache_format.metadata import layout
from pipeline.runtime.failures import explain
from pipeline.runtime.next_steps import how_to
from stages.next_steps import StageAction


@pytest.mark.parametrize(
    ("action", "command", "expected"),
    [
        (Action.RUN_STAGE_ONE, "verify", "the same `pipeline cache-teacher` command as before"),
        (Action.RUN_STAGE_ONE, "cache-teacher", "Run the same command again."),
        (Action.RUN_AGAIN, "train-student", "Run the same command with --resume."),
        (Action.CHOOSE_DIRECTORY, "merge", "--out sets"),
        (StageAction.RESUME, "generate", "`pipeline train-student` command with --resume"),
        (StageAction.RESUME, "train-student", "Run the same command with --resume."),
        (StageAction.INITIAL_WEIGHTS, "train-student", "--init sets"),
    ],
)
def test_every_action_names_a_command_or_an_option(
    action: Action, command: str, expected: str
) -> None:
    message = explain(AdvisedError("x: wrong.", NextStep("Do y.", action)), command, None)
    assert message.startswith("x: wrong. Do y.\n")
    assert expected in message


@pytest.mark.parametrize(
    ("action", "command"), [(Action.CHOOSE_DIRECTORY, "unpack"), (Action.RUN_AGAIN, "pack")]
)
def test_a_next_step_without_a_command_adds_no_line(action: Action, command: str) -> None:
    error = AdvisedError("x: wrong.", NextStep("Do y.", action))
    assert explain(error, command, None) == "x: wrong. Do y."


def test_suggested_settings_can_be_pasted_as_set_options() -> None:
    step = NextStep("Do y.", settings={"train_student.batch_size": 4, "train_student.seed": 2})
    (line,) = how_to([step], "train-student")
    assert line == "  --set train_student.batch_size=4 --set train_student.seed=2"


def test_the_same_next_step_is_printed_once() -> None:
    steps = [layout.RANKS_STEP, NextStep("Move it."), layout.unit_step(3, "it"), NextStep("")]
    assert len(how_to(steps, "verify")) == 1


def test_a_damaged_cache_file_names_the_command_that_makes_it_again() -> None:
    message = explain(CorruptFileError("ranks.bin: damaged.", layout.RANKS_STEP), "verify", None)
    problem, line = message.split("\n")
    assert problem.startswith("ranks.bin: damaged. Delete ranks.bin and run stage one again: ")
    assert line == "To run stage one again: the same `pipeline cache-teacher` command as before."
