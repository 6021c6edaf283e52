"""A comparison of targets as JSON and as text, and how far it is."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cache_format.metadata.spec_parts.targets import KL_TEMPERATURES

if TYPE_CHECKING:
    from pipeline.comparison.compare import Comparison, TargetFigures
    from pipeline.comparison.compared import Compared
    from pipeline.comparison.gradient_errors import GradientErrors
    from pipeline.reporting.progress_bar import Bar
    from stages.cache_teacher.reporting.progress import CacheProgress

_MARK = "<- recipe"


class ComparisonReport:
    """Shows on ``bar`` which kind is being measured."""

    def __init__(self, bar: "Bar") -> None:
        from pipeline.reporting.stages import CacheReport
        from pipeline.reporting.streams import ProgressOnStderr

        self._bar, self._before = bar, CacheReport(ProgressOnStderr(bar).send)

    def prepare(self, progress: "CacheProgress") -> None:
        """Before the first kind."""
        self._before(progress)

    def begin(self, number: int, num_kinds: int, compared: "Compared") -> None:
        """A kind is begun."""
        self._bar.show(number, num_kinds, " ".join(_label(compared.settings)))


def temperature_key(temperature: float) -> str:
    """``t1_5`` for 1.5."""
    return f"t{temperature:g}".replace(".", "_")


def comparison_figures(found: "Comparison") -> dict[str, Any]:
    """A comparison as JSON values."""
    keys = [temperature_key(temperature) for temperature in KL_TEMPERATURES]
    return {
        "tokens": found.num_tokens,
        "num_positions": found.num_positions,
        "student_context": found.student_context,
        **{
            f"student_kl_{key}": round(kl, 4)
            for key, kl in zip(keys, found.student_kl, strict=True)
        },
        "kinds": [_row_figures(row, keys) for row in found.rows],
    }


def comparison_json(found: "Comparison") -> str:
    """A comparison as one JSON object."""
    return json.dumps(comparison_figures(found), indent=1)


def comparison_text(found: "Comparison") -> str:
    """A comparison for people."""
    return "\n".join([*_losses(found), "", *_gradients(found)])


def _row_figures(row: "TargetFigures", keys: Sequence[str]) -> dict[str, Any]:
    by_temperature: dict[str, Any] = {}
    for key, kl, errors in zip(keys, row.self_kl, row.gradient, strict=True):
        by_temperature[f"self_kl_{key}"] = None if kl is None else round(kl, 4)
        by_temperature[f"bias_{key}"] = None if errors is None else round(errors.bias, 4)
        by_temperature[f"noise_{key}"] = None if errors is None else round(errors.noise, 4)
    time = row.relative_seconds
    return {
        "kind": row.settings["targets"],
        "settings": {key: value for key, value in row.settings.items() if key != "targets"},
        "is_recipe": row.is_recipe,
        "bytes_per_token": round(row.bytes_per_token, 1),
        "bytes": round(row.num_bytes),
        **by_temperature,
        "relative_seconds": None if time is None else round(time, 2),
    }


def _losses(found: "Comparison") -> Iterator[str]:
    from pipeline.reporting.progress_bar import short, size

    yield (
        f"{short(found.num_tokens)} tokens: size, KL(teacher ‖ cache) over the whole vocabulary in "
        "nats, time of stage one (not compiled; top_k 64 is 1):"
    )
    yield _line(
        "", [f"T = {temperature:g}" for temperature in KL_TEMPERATURES], ("B/token", "disk")
    )
    for row in found.rows:
        kl = ["" if one is None else f"{one:.3f}" for one in row.self_kl]
        time = "" if row.relative_seconds is None else f"{row.relative_seconds:.1f}"
        sizes = f"{row.bytes_per_token:.1f}", size(row.num_bytes)
        yield _marked(row, _line(_named(row), kl, sizes, time))
    yield "Of draws it is what one position tells by itself; their gradient has no bias."


def _gradients(found: "Comparison") -> Iterator[str]:
    kl = ", ".join(
        f"{one:.2f} at T = {temperature:g}"
        for one, temperature in zip(found.student_kl, KL_TEMPERATURES, strict=True)
    )
    yield "Bias / noise of the gradient of KL, over its norm:"
    heads = "".join(f"{f'T = {temperature:g}':>16}" for temperature in KL_TEMPERATURES)
    yield f"{'':{_WIDTH}}{heads}"
    for row in found.rows:
        cells = "".join(f"{_errors(errors):>16}" for errors in row.gradient)
        yield _marked(row, f"{_named(row):{_WIDTH}}{cells}")
    yield (
        f"Student: the teacher with a context of at most {found.student_context} tokens, at "
        f"{found.num_positions} positions; KL to the teacher {kl}."
    )
    yield (
        "Noise averages out over positions and steps, bias does not. The rounding of hidden "
        "states\ncounts as bias: it differs between positions, but is the same in every epoch."
    )


_WIDTH = 40


def _line(name: str, kl: Sequence[str], sizes: tuple[str, str], time: str = "time") -> str:
    per_token, disk = sizes
    cells = "".join(f"{cell:>9}" for cell in kl)
    return f"{name:{_WIDTH}}{per_token:>8}{disk:>10}{cells}{time:>7}"


def _marked(row: "TargetFigures", line: str) -> str:
    return f"{line}  {_MARK}" if row.is_recipe else line


def _errors(errors: "GradientErrors | None") -> str:
    if errors is None:
        return ""
    return f"{errors.bias:.3f}" + (f" / {errors.noise:.3f}" if errors.noise else "")


def _named(row: "TargetFigures") -> str:
    kind, settings = _label(row.settings)
    return f"{kind:14}{settings}"


def _label(settings: Mapping[str, Any]) -> tuple[str, str]:
    """The kind, and its settings as a recipe has them."""
    others = (f"{name}={value}" for name, value in settings.items() if name != "targets")
    return settings["targets"], " ".join(others)
