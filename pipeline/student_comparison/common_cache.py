"""The cache on which two students can be compared: by default the one that both learned from.

In: where two students lie. Out: a location, or an error where there is no common one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache_format.metadata.strict_json import read_object

_TEACHER_KEYS = ("weights_sha256", "tokenizer_sha256")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a student says of where it comes from; strangers may have written it."""

    name: str
    cache_id: str | None
    teacher: Mapping[str, Any]
    cache_location: str | None
    """Where its run read the cache; None of a model directory outside of a run."""
    cache_ids: tuple[str, ...] = ()
    """Of a student of several caches theirs; ``cache_id`` is then that of no cache."""

    def learned_from(self, cache_id: str) -> bool:
        """Whether a cache with this id is among those that it learned from, if it says so."""
        return cache_id in (self.cache_id, *self.cache_ids)


def origin_of(place: Path) -> Origin:
    """Of a run, of its model or a checkpoint, or of a model directory.

    Raises ValueError where there is none of these, or what says it is damaged.
    """
    from stages.train_student.checkpoints.run_record import RUN_FILE, read_record
    from stages.train_student.export.model_directory import find_model_directory, no_student

    for run in (place, place.absolute().parent, place.absolute().parent.parent):
        if (run / RUN_FILE).is_file():
            record = read_record(run)
            identity, location = record.identity, record.cache_location
            break
    else:
        model = find_model_directory(place)
        if model is None:
            raise no_student(place)
        identity, location = read_object(model / "config.json", "Copy the directory again."), None
    cache_id, teacher = identity.get("cache_id"), identity.get("teacher")
    several = identity.get("caches", identity.get("cache_ids")) or ()
    return Origin(
        name=str(place),
        cache_id=cache_id if isinstance(cache_id, str) else None,
        teacher=teacher if isinstance(teacher, dict) else {},
        cache_location=location,
        cache_ids=tuple(key for key in several if isinstance(key, str)),
    )


def require_one_teacher(first: Origin, second: Origin) -> None:
    """Raise ValueError where the students learned from different teachers."""
    for key in _TEACHER_KEYS:
        one, other = first.teacher.get(key), second.teacher.get(key)
        if one != other and None not in (one, other):
            raise ValueError(
                f"{first.name} and {second.name}: their teachers differ ({key} {one!r:.80} and "
                f"{other!r:.80}), so neither tokens nor KL compare. Compare students of one "
                "teacher; `pipeline evaluate --tasks` scores those of different ones."
            )


def common_cache(first: Origin, second: Origin) -> str:
    """The directory of the cache of both. Raises ValueError where they name no common one.

    A URL that only a run's file names is not contacted.
    """
    for origin in (first, second):
        if origin.cache_ids:
            raise ValueError(
                f"{origin.name} learned from {len(origin.cache_ids)} caches. Give the one to "
                "compare on with --cache."
            )
    if first.cache_id != second.cache_id:
        raise ValueError(
            f"{first.name} learned from cache {first.cache_id!r:.20}, {second.name} from "
            f"{second.cache_id!r:.20}: their validation rows are not the same. With --cache, both "
            "are evaluated on one cache; choose one whose validation rows neither was trained on."
        )
    locations = [
        location
        for location in (first.cache_location, second.cache_location)
        if location is not None and "://" not in location
    ]
    for location in locations:
        if Path(location).is_absolute() and Path(location).is_dir():
            return location
    known = first.cache_location or second.cache_location
    where = f"it was at {known!r}" if known else "neither records where it is"
    raise ValueError(
        f"{first.name} and {second.name}: their cache is needed, and {where}. Give its location "
        "with --cache."
    )
