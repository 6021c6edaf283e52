"""What a benchmark found, in the form of a file of results (``benchmarks.result_files``).

In: figures of students. Out: the entries that each file has, and figures with their spread.
"""

import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

_ENVIRONMENT = ("device", "threads", "torch", "commit")


def made_by(environment: Mapping[str, str]) -> dict[str, str]:
    """The command that is running, today's date, and what is in ``environment`` as one text."""
    return {
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "environment": ", ".join(
            f"{key} {environment[key]}" for key in _ENVIRONMENT if key in environment
        ),
    }


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean over seeds, and the standard deviation if there are several."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "deviation": deviation}


def differences(values: Sequence[float], others: Sequence[float]) -> dict[str, float | None]:
    """Of students of the same seeds, seed by seed."""
    return spread([own - other for own, other in zip(values, others, strict=True)])
