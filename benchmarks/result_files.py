"""Files of results, ``benchmarks/results/tables/NAME.json``, and how their figures are written.

Each holds what one command found: ``command``, ``environment``, and ``date`` or, where the output
was not kept, the ``source`` of the figures. Then either

- ``rows_are``, ``columns`` (by key: ``heading``, ``format`` as in format(value, …), ``unit``) and
  ``rows`` (``name``, and a figure for each key that it has; its own ``format`` if that differs), or
- ``printed``: lines as they were printed.

A figure is a number, a text, or a number with its spread: ``mean`` and ``deviation`` (``null`` of a
single seed), or ``median``, ``min`` and ``max``. ``figures``: others, by name, that texts cite.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parent / "results" / "tables"
NUMBER = re.compile(r"(?<![\w.])[\d,]*\.?\d+(?:e-?\d+)?")
_SMALL = 0.1  # below it, a format with an exponent shows one

Result = Mapping[str, Any]


def load_result(name: str, directory: Path = DIRECTORY) -> Result:
    """The file of this name. Raises ValueError where it is missing or lacks its source."""
    path = directory / f"{name}.json"
    try:
        result: Result = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        there = ", ".join(sorted(each.stem for each in directory.glob("*.json")))
        raise ValueError(f"{path}: no such result; there are: {there}") from error
    if missing := {"command", "environment"} - result.keys():
        raise ValueError(f"{path}: without {', '.join(sorted(missing))}")
    if not {"date", "source"} & result.keys():
        raise ValueError(f"{path}: without the date of the command, or the source of its figures")
    return result


def block(result: Result, keys: Sequence[str] = ()) -> str:
    """``result`` in Markdown, ended by a newline: what was printed, or a table of these columns."""
    if "printed" in result:
        return "\n".join(["```", *result["printed"], "```", ""])
    columns = {key: result["columns"][key] for key in keys or result["columns"]}
    rows = [row for row in result["rows"] if row.keys() & columns.keys()]
    lines = [
        [result["rows_are"], *(column["heading"] for column in columns.values())],
        *([row["name"], *(_cell(row, key, columns[key]) for key in columns)] for row in rows),
    ]
    first, *others = (
        "|" + "".join(f" {cell} |" if cell else " |" for cell in line) for line in lines
    )
    return "\n".join([first, "|---" * (1 + len(columns)) + "|", *others, ""])


def numbers(result: Result) -> Iterator[float]:
    """Every number in ``result``, those within its texts included."""
    yield from _numbers({key: result[key] for key in result if key not in ("source", "date")})


def is_of(text: str, found: Sequence[float]) -> bool:
    """Whether the number that ``text`` writes is one of ``found``, rounded to its digits."""
    mantissa, _, exponent = text.replace(",", "").partition("e")
    form = f".{len(mantissa.partition('.')[2])}{'e' if exponent else 'f'}"
    number = float(text.replace(",", ""))
    return any(float(format(each, form)) == number for each in found)


def _cell(row: Mapping[str, Any], key: str, column: Mapping[str, str]) -> str:
    form, unit = row.get("format", column["format"]), column.get("unit", "")
    match row.get(key):
        case None:
            return ""
        case str(text):
            return text
        case {"mean": mean, "deviation": None}:
            return _number(mean, form) + unit
        case {"mean": mean, "deviation": deviation}:
            return f"{_number(mean, form)}{unit} ±{_number(deviation, form)}"
        case {"median": median, "min": least, "max": most}:
            spread = f"({_number(least, form)}, {_number(most, form)})"
            return f"{_number(median, form)}{unit} {spread}"
        case number:
            return _number(number, form) + unit


def _number(value: float, form: str) -> str:
    if form.endswith("e") and abs(value) >= _SMALL:
        form = ",g"
    mantissa, _, exponent = format(value, form).partition("e")
    text = f"{mantissa}e{int(exponent)}" if exponent else mantissa
    return text.replace("-", "−", 1) if value < 0 else text


def _numbers(value: object) -> Iterator[float]:
    match value:
        case bool() | None:
            return
        case int() | float():
            yield float(value)
        case str():
            yield from (float(found.replace(",", "")) for found in NUMBER.findall(value))
        case Mapping():
            for each in value.values():
                yield from _numbers(each)
        case Sequence():
            for each in value:
                yield from _numbers(each)
