"""A suite: benchmarks with everything that their scores depend on, as a TOML file.

In: the name of a shipped suite, or the path of a file; ``NAME:PART`` takes the tasks of one part.
Out: a ``Suite``. What is judged by a suite is judged by these benchmarks and metrics alone, so that
two figures with its name in front of them mean the same.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

_FOLDER = "suites"


@dataclass(frozen=True, kw_only=True)
class SuiteTask:
    """A task of lm-evaluation-harness, and how it is run. None leaves a setting to the task."""

    task: str
    """Its name, or that of a group of tasks whose scores the harness combines."""
    metric: str | None = None
    """``METRIC`` or ``METRIC,FILTER``: the score that the student is judged by."""
    part: str = ""
    """What ``NAME:PART`` chooses it by."""
    num_fewshot: int | None = None
    """Solved examples in front of each question."""
    max_new_tokens: int | None = None
    """The most tokens of an answer."""
    chat_template: bool = False
    """Whether questions are put into the tokenizer's chat template."""
    fewshot_as_multiturn: bool = False
    """Whether the examples are turns of the conversation, instead of a text in one turn."""
    runs_generated_code: bool = False
    """Whether the score is found by running what the model wrote."""

    def __post_init__(self) -> None:
        for field in ("num_fewshot", "max_new_tokens"):
            value, least = getattr(self, field), int(field == "max_new_tokens")
            if value is not None and (type(value) is not int or value < least):
                raise ValueError(
                    f"{self.task}: {field}: expected a whole number ≥ {least}, found {value!r}"
                )
        for field in ("chat_template", "fewshot_as_multiturn", "runs_generated_code"):
            if type(getattr(self, field)) is not bool:
                raise ValueError(
                    f"{self.task}: {field}: expected true or false, found {getattr(self, field)!r}"
                )
        for field in ("task", "metric", "part"):
            value = getattr(self, field)
            if not (isinstance(value, str) or (value is None and field == "metric")):
                raise ValueError(f"{self.task}: {field}: expected a string, found {value!r}")
        if self.fewshot_as_multiturn and not self.chat_template:
            raise ValueError(f"{self.task}: fewshot_as_multiturn needs chat_template = true")


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Tasks under a name."""

    name: str
    tasks: tuple[SuiteTask, ...]
    max_length: int | None = None
    """Tokens of question and answer together; longer questions lose their beginning."""


def suite_names() -> list[str]:
    """The shipped suites."""
    folder = resources.files(__package__) / _FOLDER
    return sorted(
        path.name.removesuffix(".toml") for path in folder.iterdir() if path.name.endswith(".toml")
    )


def is_suite(name: str) -> bool:
    """Whether ``name`` is meant for a suite, and not for a task of the harness."""
    base = name.partition(":")[0]
    return base in suite_names() or base.endswith(".toml")


def load_suite(name: str) -> Suite:
    """The suite ``name``, or one part of it.

    Raises ValueError where there is no such suite or part, or the file is wrong.
    """
    base, colon, part = name.partition(":")
    if base.endswith(".toml"):
        try:
            text = Path(base).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"suite {base}: cannot be read: {error}") from error
    elif base in suite_names():
        text = (resources.files(__package__) / _FOLDER / f"{base}.toml").read_text("utf-8")
    else:
        raise ValueError(
            f"no suite {base!r}: there are {', '.join(suite_names())}; a file of your own ends in "
            ".toml"
        )
    suite = _parse(Path(base).name.removesuffix(".toml"), base, text)
    if not colon:
        return suite
    chosen = tuple(task for task in suite.tasks if task.part == part)
    if not chosen:
        parts = ", ".join(dict.fromkeys(task.part for task in suite.tasks if task.part))
        raise ValueError(f"suite {base}: no part {part!r}; it has {parts or 'no parts'}")
    return Suite(name=f"{suite.name}:{part}", tasks=chosen, max_length=suite.max_length)


def _parse(name: str, place: str, text: str) -> Suite:
    known = {field.name for field in fields(SuiteTask)}
    try:
        table = tomllib.loads(text)
        _refuse_unknown(table, {"tasks", "max_length"}, "")
        tables: Any = table.get("tasks")
        if not (isinstance(tables, list) and tables and all(isinstance(t, dict) for t in tables)):
            raise ValueError("expected [[tasks]] tables, at least one")
        for each in tables:
            _refuse_unknown(each, known, f"{each.get('task', 'a task')}: ")
            if "task" not in each:
                raise ValueError("a [[tasks]] table lacks its task")
        tasks = tuple(SuiteTask(**each) for each in tables)
        max_length = table.get("max_length")
        if max_length is not None and (type(max_length) is not int or max_length < 2):
            raise ValueError(f"max_length: expected a whole number ≥ 2, found {max_length!r}")
    except ValueError as error:
        raise ValueError(f"suite {place}: {error}") from error
    _refuse_repeated(place, [task.task for task in tasks])
    return Suite(name=name, tasks=tasks, max_length=max_length)


def _refuse_unknown(table: dict[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(table.keys() - known):
        raise ValueError(f"{where}unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")


def _refuse_repeated(place: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"suite {place}: task {name!r} is there twice")
