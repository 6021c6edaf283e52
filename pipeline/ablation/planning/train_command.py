"""The command line by which a sweep trains one student: ``train-student``, as a person types it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """What all runs of a sweep are told beside their recipe and directory."""

    cache: Path | str
    init: Path | None = None
    teacher: str | None = None
    online: str | None = None
    """The teacher in the loop: None without one; "" if it is where the cache says."""
    local_directory: Path | None = None
    local_gib: float | None = None

    def absolute(self) -> "TrainCommand":
        """The same for a process with another working directory."""
        return replace(
            self,
            cache=self.cache.absolute() if isinstance(self.cache, Path) else self.cache,
            init=self.init and self.init.absolute(),
            teacher=_absolute(self.teacher),
            online=_absolute(self.online),
            local_directory=self.local_directory and self.local_directory.absolute(),
        )

    def inputs(self) -> Iterator[Path]:
        """What a run reads from local paths."""
        for place in (self.cache, self.init, self.teacher, self.online):
            if place and Path(place).exists():
                yield Path(place)

    def arguments(self, recipe: Path, out: Path) -> tuple[str, ...]:
        """Of ``pipeline``. It resumes what is in ``out``, or begins there."""
        words = ["train-student", "--recipe", str(recipe), "--cache", str(self.cache)]
        words += ["--out", str(out), "--resume"]
        if self.init is not None:
            words += ["--init", str(self.init)]
        if self.teacher is not None:
            words += ["--teacher", self.teacher]
        if self.online is not None:
            words += ["--teacher-in-the-loop", *([self.online] if self.online else [])]
        if self.local_directory is not None:
            words += ["--local-directory", str(self.local_directory)]
        if self.local_gib is not None:
            words += ["--local-gib", f"{self.local_gib:g}"]
        return tuple(words)


def _absolute(place: str | None) -> str | None:
    """``place``, a directory or a Hub id, without the working directory."""
    return str(Path(place).absolute()) if place and Path(place).exists() else place
