"""Every way in which a cache can be refused. Imports nothing heavy, so that it is cheap to catch.

Each message says what is wrong, where, what was expected and found, and what to do next, in words
that know no command line. What a command line can add, ``NextStep`` tells it.
"""

from collections.abc import Mapping
from enum import Enum, auto


class Action(Enum):
    """What a person does about an error, where a command line has a command or an option for it."""

    RUN_AGAIN = auto()
    """Run again what has failed."""
    RUN_STAGE_ONE = auto()
    """Run stage one again, as it was run before."""
    FINISH_PARTS = auto()
    """Merge parts of a cache, or make what workers that shared it have left."""
    MERGE = auto()
    """Merge caches."""
    NAME_CACHE = auto()
    """Give a directory that stage one wrote."""
    PACK = auto()
    """Pack a cache into one file."""
    CHOOSE_DIRECTORY = auto()
    """Write to another directory."""


class NextStep(str):
    """What to do about an error, as text, with what a command line needs to say how."""

    actions: tuple[Enum, ...]
    """In the order of the text."""
    settings: Mapping[str, object]
    """Proposed values of a recipe's keys."""

    def __new__(
        cls, text: str, *actions: Enum, settings: Mapping[str, object] | None = None
    ) -> "NextStep":
        step = super().__new__(cls, text)
        step.actions, step.settings = actions, settings or {}
        return step


CHOOSE_DIRECTORY = NextStep(
    "Choose another directory; nothing was changed.", Action.CHOOSE_DIRECTORY
)


class AdvisedError(ValueError):
    """An error that says what to do next, and keeps it as ``next_step`` for a command line."""

    problem: str
    """The message without ``next_step``."""
    next_step: NextStep

    def __init__(self, problem: str, next_step: str = "") -> None:
        gap = " " if next_step and not problem.endswith("\n") else ""
        super().__init__(f"{problem}{gap}{next_step}")
        self.problem = problem
        self.next_step = next_step if isinstance(next_step, NextStep) else NextStep(next_step)


class CacheError(AdvisedError):
    """A cache cannot be used as asked. Base of all errors of this package about caches."""


class CorruptFileError(CacheError):
    """A file's bytes are not those that were written."""


class CorruptShardError(CorruptFileError):
    """A shard's bytes are not those that were written, or cannot be decoded."""


class CorruptArchiveError(CacheError):
    """A packed cache is damaged, cut short, or something else."""


class MissingFileError(CacheError):
    """A file that the cache names is not there."""


class MissingShardError(MissingFileError):
    """A shard that the cache names is not there."""


class SpecMismatchError(CacheError):
    """The cache was made from another spec than the one asked for."""


class UnsupportedFormatError(CacheError):
    """The cache was written in a format that this version does not know."""


class IncompleteCacheError(CacheError):
    """The cache is still being written, or its writing was cut short."""


class ForeignDirectoryError(CacheError):
    """A directory that should be a cache, or empty, holds something else."""


class StorageError(CacheError):
    """The system refused to read or write a file; what the file holds is another matter."""


class NoSpaceError(StorageError):
    """The disk or the quota is full."""
