"""Which safetensors files of a model directory hold its weights, whoever wrote the directory.

What lies elsewhere is never named: an index gives names of files beside it, or is refused.
"""

import re
from pathlib import Path

from cache_format.metadata.strict_json import read_object

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.safetensors")
_STEP = "Put it back from where the model came."


def weight_files(directory: Path) -> list[str]:
    """Their names; none where there are no safetensors weights.

    Raises ValueError for an index that is damaged, and for parts that are missing.
    """
    if (directory / WHOLE).is_file():
        return [WHOLE]
    index = directory / INDEX
    if not index.is_file():
        return []
    weight_map = read_object(index, _STEP).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: damaged: weight_map: expected an object of names. {_STEP}")
    for part in weight_map.values():
        if not isinstance(part, str) or _PART.fullmatch(part) is None:
            raise ValueError(
                f"{index}: weight_map: expected names of .safetensors files beside it, found "
                f"{part!r}. {_STEP}"
            )
    parts = sorted(set(weight_map.values()))
    missing = [part for part in parts if not (directory / part).is_file()]
    if missing:
        raise ValueError(f"{directory} lacks {', '.join(missing)}, named by {INDEX}. {_STEP}")
    return parts


def pickled_note(directory: Path) -> str:
    """What to add where weights are missing, but there are pickled ones."""
    pickled = sorted(path.name for path in directory.glob("*.bin"))
    return f" (its {pickled[0]} is a pickle, which is never loaded)" if pickled else ""
