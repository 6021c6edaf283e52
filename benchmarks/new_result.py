"""What a benchmark found, in the form of a file of results (``benchmarks.result_files``).

In: figures of students. Out: the entries that each file has, and figures with their spread.
"""

import shlex
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from pipeline.run_report.recorded.recorded_run import RecordedRun

_ENVIRONMENT = ("device", "threads", "torch", "commit")


def made_by(environments: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The command that is running, the day of its output, and where its students were trained.

    Of a command that was stopped and went on elsewhere, every device and commit that it had.
    """
    found: dict[str, list[str]] = {}
    for environment in environments:
        for key in _ENVIRONMENT:
            if key in environment and environment[key] not in found.setdefault(key, []):
                found[key].append(environment[key])
    return {
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "environment": ", ".join(f"{key} {' and '.join(texts)}" for key, texts in found.items()),
    }


def environment_of(run: RecordedRun) -> Mapping[str, str]:
    """What the run recorded of where it was trained."""
    return (run.record and run.record.environment) or {}


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean over seeds, and the standard deviation if there are several."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "deviation": deviation}


def differences(values: Sequence[float], others: Sequence[float]) -> dict[str, float | None]:
    """Of students of the same seeds, seed by seed."""
    return spread([own - other for own, other in zip(values, others, strict=True)])
