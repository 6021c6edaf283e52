"""Which directories are runs, and what each is called in a report.

In: directories as they are named on the command line, each a run or a folder of runs. Out: the
runs, read, in the order of their names.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from cache_format.storage.atomic import is_temporary
from pipeline.reporting.printable import printable
from pipeline.run_report.recorded.recorded_run import RecordedRun, read_run

_RUN_FILE = "run.json"
_DEEPEST = 4
_MOST_RUNS = 1_000


def find_runs(places: Sequence[Path]) -> list[RecordedRun]:
    """All runs at or below ``places``, each once.

    Raises ValueError naming a place without any, and where there are more than a thousand.
    """
    found: dict[Path, Path] = {}
    for place in places:
        below = sorted(_runs_below(place), key=_natural)
        if not below:
            raise ValueError(
                f"{place}: no run of stage two in it: no {_RUN_FILE}, at most {_DEEPEST} folders "
                "deep. Give the directory that `pipeline train-student` wrote with --out, or one "
                "that holds such directories."
            )
        for path in below:
            found.setdefault(path.resolve(), path)
    if len(found) > _MOST_RUNS:
        raise ValueError(f"{len(found):,} runs: a report shows {_MOST_RUNS:,} at most. Name fewer.")
    names = run_names(list(found))
    return [read_run(path, names[resolved]) for resolved, path in found.items()]


def run_names(paths: Sequence[Path]) -> dict[Path, str]:
    """What sets each path apart from the others: what follows their common parents."""
    if len(paths) == 1:
        return {paths[0]: _readable(paths[0].name)}
    common = os.path.commonpath(paths)
    names = {path: os.path.relpath(path, common) for path in paths}
    # One run may lie in another's directory.
    return {path: _readable(path.name if name == "." else name) for path, name in names.items()}


def _readable(name: str) -> str:
    """``name`` as it can be written to a file, whatever bytes it has."""
    return printable(name.encode("utf-8", "backslashreplace").decode("utf-8"), keep="")


def _runs_below(place: Path, depth: int = 0) -> Iterable[Path]:
    if os.path.lexists(place / _RUN_FILE):  # also what is no file: the report says so
        yield place
        return
    if depth == _DEEPEST:
        return
    for entry in os.scandir(place):
        # A link may lead anywhere, and round in a circle.
        if entry.is_dir(follow_symlinks=False) and not is_temporary(Path(entry.path)):
            yield from _runs_below(Path(entry.path), depth + 1)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Numbers by their size: seed-2 before seed-10."""
    parts = re.split(r"(\d+)", str(path), flags=re.ASCII)
    return [(int(part[:15]), "") if part.isdecimal() else (-1, part) for part in parts]
