"""Turn the next step of an error into the command, option or settings to type.

The packages below ``pipeline`` do not name commands. Their errors describe the next step in words,
and identify it by an ``Action``; this module has the command or option for each action.
"""

from collections.abc import Iterable, Iterator
from enum import Enum

from cache_format.errors import Action, NextStep
from stages.next_steps import StageAction

_AGAIN = "Run the same command again."
_RESUME = "Run the same command with --resume."
_HOW: dict[Enum, str] = {
    Action.RUN_STAGE_ONE: "To run stage one again: the same `pipeline cache-teacher` command as "
    "before.",
    Action.FINISH_PARTS: "`pipeline merge` merges parts that were made by --units. The same "
    "`pipeline cache-teacher` command without --worker makes units that workers did not finish.",
    Action.MERGE: "To merge caches: `pipeline merge CACHE... --out NEW`.",
    Action.NAME_CACHE: "`pipeline cache-teacher` (stage one) writes a cache to its --out.",
    Action.PACK: "To pack a cache: `pipeline pack CACHE FILE`.",
    StageAction.RESUME: "To resume a run: its `pipeline train-student` command with --resume.",
    StageAction.EXTEND: "To extend a run: --resume --extend-to STEPS.",
    StageAction.INITIAL_WEIGHTS: "--init sets the initial weights; without it, a run begins "
    "from random weights, or resumes from its own.",
    StageAction.TEACHER_WEIGHTS: "`pipeline train-student --teacher DIRECTORY|HUB-ID` names the "
    "teacher.",
    StageAction.LOCAL_SPACE: "--local-gib limits the disk space of local copies.",
    StageAction.RAY_ADDRESS: "--ray-address sets the cluster.",
    StageAction.RAY_WORKERS: "--ray-workers sets the number of workers.",
}
_IN_COMMAND: dict[tuple[str, Enum], str] = {
    ("cache-teacher", Action.RUN_STAGE_ONE): _AGAIN,
    ("extend", Action.RUN_STAGE_ONE): _AGAIN,
    ("train-student", Action.RUN_AGAIN): _RESUME,
    ("train-student", StageAction.RESUME): _RESUME,
    **{
        (command, Action.CHOOSE_DIRECTORY): "--out sets the directory."
        for command in ("cache-teacher", "train-student", "ablate", "convert", "merge", "demo")
    },
}
"""What goes before ``_HOW`` where one command says it in other words, or says it at all."""


def how_to(steps: Iterable[NextStep], command: str) -> list[str]:
    """How to do ``steps`` by the command line, of which ``command`` is running, each line once.

    Most steps are said in full by their text, and have no line.
    """
    return list(dict.fromkeys(line for step in steps for line in _lines(step, command)))


def _lines(step: NextStep, command: str) -> Iterator[str]:
    for action in step.actions:
        line = _IN_COMMAND.get((command, action), _HOW.get(action))
        if line is not None:
            yield line
    if step.settings:
        yield "  " + " ".join(f"--set {key}={value}" for key, value in step.settings.items())
