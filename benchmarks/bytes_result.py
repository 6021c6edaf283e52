"""The table of bytes against students, as a file of results: a row for each kind of targets.

In: the benchmark's rows. Out: means over seeds, ranked by loss; differences to the student of the
same seed that has the teacher in the loop; gains, the share of what that one gains over labels
alone.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from benchmarks.new_result import differences, made_by, spread

_WITHOUT_CACHE = {"online": "teacher in the loop", "labels": "labels alone"}
_COLUMNS = {
    "bytes": {"heading": "bytes/token", "format": ".1f"},
    "state_bytes": {"heading": "bytes/token of hidden states", "format": ".1f"},
    "loss": {"heading": "loss", "format": ".4f"},
    "loss_difference": {"heading": "loss, to teacher in the loop", "format": ".4f"},
    "gain": {"heading": "gain", "format": ".1f", "unit": " %"},
    "kl": {"heading": "KL", "format": ".4f"},
    "kl_difference": {"heading": "KL, to teacher in the loop", "format": ".4f"},
    "kl_gain": {"heading": "gain of KL", "format": ".1f", "unit": " %"},
}


def results(rows: Sequence[Mapping[str, Any]], steps: int) -> dict[str, Any]:
    """``rows`` begins with the teacher in the loop and labels alone; all have the same seeds."""
    online, labels, *_ = rows
    found = [_row(row, online, labels) for row in rows]
    return {
        **made_by(
            student.get("environment", {})  # without one, of an older version
            for row in rows
            for student in row["students"]
        ),
        "steps": steps,
        "rows_are": "targets",
        "columns": _COLUMNS,
        "rows": sorted(found, key=lambda row: row["loss"]["mean"]),
        "students": list(rows),
    }


def name_of(row: Mapping[str, Any]) -> str:
    """What a row is called: the way, or its settings, numbers with the names of theirs."""
    if row["way"] in _WITHOUT_CACHE:
        return _WITHOUT_CACHE[row["way"]]
    settings = {key: str(value) for key, value in row["settings"].items()}
    words = [_words(key, value) for key, value in settings.items() if value not in settings]
    return ", ".join(words)


def _row(
    row: Mapping[str, Any], online: Mapping[str, Any], labels: Mapping[str, Any]
) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name_of(row)}
    if row["way"] == "cache":
        found |= {"bytes": row["bytes_per_token"], "state_bytes": row["state_bytes_per_token"]}
    for key in ("loss", "kl"):
        own, of_online, of_labels = (
            [student[f"validation_{key}"] for student in each["students"]]
            for each in (row, online, labels)
        )
        found[key] = spread(own)
        if row is not online:
            found[f"{key}_difference"] = differences(own, of_online)
        gain = "gain" if key == "loss" else "kl_gain"
        if row["way"] == "cache":
            found[gain] = spread(_gains(own, of_online, of_labels))
        else:
            found[gain] = 100 if row is online else 0
    return found


def _gains(
    own: Sequence[float], of_online: Sequence[float], of_labels: Sequence[float]
) -> list[float]:
    """Percent of what the teacher in the loop gains, in each seed."""
    each = zip(own, of_online, of_labels, strict=True)
    return [100 * (without - value) / (without - whole) for value, whole, without in each]


def _words(key: str, value: str) -> str:
    with suppress(ValueError):
        return f"{key} {float(value):g}"
    return value
