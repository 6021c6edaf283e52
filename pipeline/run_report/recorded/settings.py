"""The settings of runs: which decide a result, and in which the runs differ.

In: runs. Out: flat tables, "student.num_blocks" by its value as text.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.run_report.recorded.recorded_run import RecordedRun

if TYPE_CHECKING:
    from stages.train_student.checkpoints.recorded_caches import RecordedCache

SEED = "seed"
CACHE_WEIGHTS = "weights of the caches"
"""Of a run of several caches; a name alone where rows are drawn in proportion to their number."""
ABSENT = "–"
_NO_SETTINGS = {
    *("cache_id", "caches", "teacher", "shards_sha256", "initial_weights_sha256"),
    *("num_train_rows", "num_train_shards", "num_validation_rows", "num_validation_shards"),
}
"""What a run's identity holds beside settings."""
_LONGEST = 200


def deciding_settings(run: RecordedRun) -> dict[str, str]:
    """The settings that decide what ``run`` computes, and how far it was extended.

    Those that are newer than the run have the defaults, by which it was trained.
    """
    identity = {key: value for key, value in run.identity.items() if key not in _NO_SETTINGS}
    found = _flat(_with_defaults(identity))
    if run.record is not None and run.record.extensions:
        steps = [(each.from_step, each.to_step) for each in run.record.extensions]
        found["extended"] = ", ".join(f"{start} to {end}" for start, end in steps)
    if run.record is not None and run.record.caches is not None:
        found[CACHE_WEIGHTS] = ", ".join(_weights(run, run.record.caches))
    return found


def all_settings(run: RecordedRun) -> dict[str, str]:
    """Also those that only affect speed, from ``recipe.toml``."""
    return _flat(run.recipe) | deciding_settings(run)


def differing_settings(tables: Sequence[Mapping[str, str]]) -> list[str]:
    """The keys that not all ``tables`` have the same value of."""
    keys = sorted({key for table in tables for key in table})
    return [key for key in keys if len({table.get(key, ABSENT) for table in tables}) > 1]


def usual_value(tables: Sequence[Mapping[str, str]], key: str) -> str:
    """What most of ``tables`` have; of several the one that comes first."""
    return Counter(table.get(key, ABSENT) for table in tables).most_common(1)[0][0]


def _weights(run: RecordedRun, caches: "Sequence[RecordedCache]") -> list[str]:
    """How often rows are drawn from each of several caches, in words."""
    recorded = run.identity.get("caches")
    own = recorded if isinstance(recorded, dict) else {}
    weights = [_value(own.get(cache.cache_id), "weight") for cache in caches]
    return [
        cache.label if weight is None else f"{cache.label} {weight}"
        for cache, weight in zip(caches, weights, strict=True)
    ]


def _value(table: object, key: str) -> object:
    return table.get(key) if isinstance(table, dict) else None


def _with_defaults(identity: dict[str, Any]) -> dict[str, Any]:
    from stages.train_student.config import TrainStudentConfig
    from stages.train_student.students.registry import settings_class
    from stages.train_student.trainer.run_directory import with_new_settings

    student = identity.get("student")
    if not isinstance(student, dict):
        return identity
    try:
        kind = settings_class(student.get("kind", "distil_xlstm"))
    except ValueError:  # of a version to come, or a stranger's
        return identity
    return with_new_settings(identity, TrainStudentConfig(student=kind()))


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            found[f"{prefix}{key}"] = _text(value)
    return found


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
