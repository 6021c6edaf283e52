"""A disk that fails: every call that reads or changes files, recorded and made to fail on demand.

``Disk(root)`` is a context in which all calls on files below ``root`` pass through this module.
Files are opened by Python's own implementation of ``open``, which ends in ``os.write`` and
``os.read`` where the built-in one ends in system calls that nobody can see from here. fsync is
recorded and not done: no test can cut the power, and it takes most of the time.
"""

import _pyio  # type: ignore[import-not-found]
import builtins
import io
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import pytest

REMOVING = frozenset({"unlink", "remove", "rmdir"})
CHANGING = REMOVING | {
    *("create", "write", "fsync", "replace", "rename", "link", "symlink", "mkdir"),
    *("fchmod", "chmod", "truncate", "ftruncate", "utime"),
}
READING = frozenset({"open", "read", "pread", "readinto", "stat", "listdir", "scandir"})


class Call(NamedTuple):
    """One call, before it was done."""

    name: str
    path: Path
    target: Path
    """The new name, of a call that gives one; ``path`` otherwise."""


class Fault(NamedTuple):
    """What goes wrong: the call number ``first`` of those in ``calls`` fails with ``number``."""

    number: int
    first: int
    calls: frozenset[str] = CHANGING
    lasting: bool = False
    """Whether all later ones fail too."""
    short: bool = False
    """Whether a write at that moment writes half of its bytes, and the next write fails."""


class Disk:
    """See the top of the file. ``calls`` are those that were made, ``failed`` those that failed."""

    def __init__(self, root: Path, fault: Fault | None = None) -> None:
        self.calls: list[Call] = []
        self.failed: list[Call] = []
        self._root = root.resolve()
        self._fault = fault
        self._num_counted = 0
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Self:
        for name in sorted(CHANGING | READING):
            if hasattr(os, name):
                self._patch.setattr(os, name, self._failing(name, getattr(os, name)))
        for module in (builtins, io):
            self._patch.setattr(module, "open", _pyio.open)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._patch.undo()

    def changes(self) -> list[Call]:
        """The calls that changed something, or tried to."""
        return [call for call in self.calls if call.name in CHANGING]

    def _failing(self, function: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            name, where = function, arguments[0] if arguments else "."
            if function == "open":
                flags = arguments[1] if len(arguments) > 1 else options["flags"]
                name = "create" if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR) else "open"
            path = self._path(where, options.get("dir_fd"))
            if not path.is_relative_to(self._root):
                return real(*arguments, **options)
            if self._meets_fault(_call(name, path, arguments)):
                assert self._fault is not None
                if self._fault.short and name == "write" and len(arguments[1]) > 1:
                    self._fault = self._fault._replace(
                        first=0, calls=frozenset({"write"}), short=False
                    )
                    self._num_counted = 0
                    return real(where, arguments[1][: len(arguments[1]) // 2])
                self.failed.append(self.calls[-1])
                named = [] if isinstance(where, int) else [str(path)]
                raise OSError(self._fault.number, os.strerror(self._fault.number), *named)
            return None if name == "fsync" else real(*arguments, **options)

        return call

    def _meets_fault(self, call: Call) -> bool:
        self.calls.append(call)
        fault = self._fault
        if fault is None or call.name not in fault.calls:
            return False
        late = self._num_counted - fault.first
        self._num_counted += 1
        return late == 0 or (fault.lasting and late > 0)

    def _path(self, where: Any, directory: int | None) -> Path:
        if isinstance(where, int):
            return Path(os.readlink(f"/proc/self/fd/{where}"))
        if directory is not None:
            return Path(os.readlink(f"/proc/self/fd/{directory}"), os.fsdecode(where))
        return Path(os.path.abspath(os.fsdecode(where)))


def _call(name: str, path: Path, arguments: tuple[Any, ...]) -> Call:
    gives_name = name in {"replace", "rename", "link"}
    target = Path(os.path.abspath(os.fsdecode(arguments[1]))) if gives_name else path
    return Call(name, path, target)
