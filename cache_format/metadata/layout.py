"""File names in a cache directory, and the next steps for missing or damaged files.

Paths are relative to the cache. Nothing else may be named by a receipt or the manifest, so that no
damaged or foreign file can lead a reader out of the directory.
"""

import re

from cache_format.errors import Action, NextStep
from cache_format.storage.base import Storage

MANIFEST = "manifest.json"
SPEC = "spec.json"
RANKS = "ranks.bin"
PROJECTION = "projection.bin"
TRANSFORM = "transform.bin"
MOMENT = "tail_moment.bin"
RECIPE = "recipe.toml"
RECEIPTS = "receipts"
SHARDS = "shards"
TEACHER = "teacher"
TEACHER_RECEIPT = f"{RECEIPTS}/teacher.json"


def make_again(before: str, after: str) -> NextStep:
    """The next step where stage one makes a file again."""
    return NextStep(f"{before} run stage one again: {after}", Action.RUN_STAGE_ONE)


RANKS_STEP = make_again(f"Delete {RANKS} and", "only this file is written again, no units.")
PROJECTION_STEP = make_again(
    f"Restore {PROJECTION} from a copy of the cache; or delete it and",
    "the same hardware makes the same file again, and no units.",
)
TRANSFORM_STEP = make_again(
    f"Restore {TRANSFORM} from a copy of the cache; or delete it and",
    "the same hardware makes the same file again, and no units.",
)
MOMENT_STEP = make_again(
    f"Restore {MOMENT} from a copy of the cache; or delete it and",
    "the same hardware makes the same file again, and no units.",
)
RECIPE_STEP = (
    f"Restore {RECIPE} from a copy of the cache, or delete it: it is not needed to train students, "
    "or to run stage one with another copy of the recipe."
)
TEACHER_STEP = make_again(
    f"Delete {TEACHER_RECEIPT} and", "only the teacher's files are written again, no units."
)

_RECEIPT_FILE = re.compile(r"([0-9]{5}|[1-9][0-9]{5,18})\.json")
_ATTACHMENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


def shard_file(unit: int, sha256: str) -> str:
    """Path of a shard relative to the cache."""
    return f"{SHARDS}/{unit:05d}-{sha256[:16]}.arrow"


def receipt_file(unit: int) -> str:
    """Path of a shard's receipt relative to the cache."""
    return f"{RECEIPTS}/{unit:05d}.json"


def unit_step(unit: int, file: str) -> NextStep:
    """What to do about a shard or receipt of ``unit``, ``file``, that is damaged or missing."""
    return make_again(f"Delete {file} and", f"only unit {unit} is made again.")


def is_receipt(name: str) -> bool:
    """Whether ``name`` in ``receipts/`` is that of a unit or of ``teacher/``."""
    return _RECEIPT_FILE.fullmatch(name) is not None or f"{RECEIPTS}/{name}" == TEACHER_RECEIPT


def receipt_units(storage: Storage) -> list[int]:
    """The units that have a receipt, rising."""
    matches = (_RECEIPT_FILE.fullmatch(name) for name in storage.list_names(RECEIPTS))
    return sorted(int(match[1]) for match in matches if match is not None)


def require_attachment_name(name: str) -> None:
    """Raise ValueError unless ``name`` may be a file of ``teacher/``: no way leads out of it."""
    if _ATTACHMENT.fullmatch(name) is None:
        raise ValueError(
            f"{name!r} cannot be a file of a cache: expected letters, digits, '.', '-', '_' and "
            "'/' between names that do not begin with '.'"
        )
