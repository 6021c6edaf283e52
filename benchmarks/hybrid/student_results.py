"""The trainings of hybrid students as a file of results: a row for each mixer, means over seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

from benchmarks.new_result import differences, environment_of, made_by, spread
from pipeline.run_report.recorded.recorded_run import RecordedRun

Trainings = Mapping[str, RecordedRun]
"""Of one student, by what they make of it: aligned, distilled."""
_FIGURES = {"loss": ("loss", ".4f"), "kl": ("KL", ".4f")}
_GATE = "validation/output_gate_layer_"


def results(found: Mapping[str, Sequence[Trainings]]) -> dict[str, Any]:
    """``found`` has the students of each mixer, in order of seeds; the first is the whole mixer."""
    whole = next(iter(found))
    figures = {mixer: [_figures(runs) for runs in seeds] for mixer, seeds in found.items()}
    columns = {
        f"{phase}_{key}": {"heading": f"{phase}: {heading}", "format": form}
        for phase in ("untrained", "aligned", "distilled")
        for key, (heading, form) in _FIGURES.items()
    }
    runs = [run for seeds in found.values() for of_seed in seeds for run in of_seed.values()]
    return {
        **made_by(map(environment_of, runs)),
        "rows_are": "mixer",
        "columns": columns
        | {
            f"{key}_difference": {"heading": f"distilled: {heading}, to the whole", "format": form}
            for key, (heading, form) in _FIGURES.items()
        },
        "rows": [
            *(_row(mixer, seeds, figures[whole]) for mixer, seeds in figures.items()),
            {"name": "teacher", "untrained_loss": _last(runs[0], "validation/teacher_loss")},
        ],
        "students": figures,
        "output_gates": _output_gates([each["aligned"] for each in found[whole]]),
    }


def _row(
    mixer: str, seeds: Sequence[Mapping[str, float]], whole: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    row = {"name": mixer} | {key: spread([each[key] for each in seeds]) for key in seeds[0]}
    if seeds is whole:
        return row
    return row | {
        f"{key}_difference": differences(
            *([one[f"distilled_{key}"] for one in students] for students in (seeds, whole))
        )
        for key in _FIGURES
    }


def _figures(runs: Trainings) -> dict[str, float]:
    """Of one student: before its first training, and after each."""
    first = next(iter(runs.values()))
    found = {f"untrained_{key}": first.metrics.of(f"validation/{key}")[0] for key in _FIGURES}
    for phase, run in runs.items():
        for key in _FIGURES:
            found[f"{phase}_{key}"] = _last(run, f"validation/{key}")
    return found


def _output_gates(runs: Sequence[RecordedRun]) -> dict[str, dict[str, float | None]]:
    """Of each layer after the alignment: 0 is the window alone, 1 the mLSTM alone."""
    names = sorted(name for name in runs[0].metrics.by_name if name.startswith(_GATE))
    return {name.removeprefix(_GATE): spread([_last(run, name) for run in runs]) for name in names}


def _last(run: RecordedRun, name: str) -> float:
    value = run.metrics.last(name)
    if value is None:
        raise click.ClickException(
            f"{run.path}: its metrics do not end with a {name}. Remove this run; the same command "
            "trains it again."
        )
    return value
