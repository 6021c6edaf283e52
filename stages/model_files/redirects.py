"""Keys by which a model directory tells transformers to read other files than the usual ones.

A cache is identified by the hashes of the usual files, and a student is published as those. So a
directory with such a key is refused, wherever in its JSON the key is.
"""

import json
from collections.abc import Iterator
from pathlib import Path

_REDIRECTS = ("configuration_files", "fast_tokenizer_files", "transformers_weights")


def refuse_redirects(path: Path) -> None:
    """Raise ValueError where the JSON file at ``path``, if any, names files to read instead.

    Read as transformers reads it, which allows more than JSON, such as ``Infinity``; what it cannot
    read either is left for it to name.
    """
    if not path.is_file():
        return
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return
    for key in _keys(value):
        if key in _REDIRECTS:
            raise ValueError(
                f"{path}: {key} makes transformers read other files than those that identify the "
                "model. Delete that key, and give the files their usual names."
            )


def _keys(value: object) -> Iterator[str]:
    """The keys of every object in ``value``, those without a value left out."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if inner not in (None, [], {}):
                yield key
            yield from _keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(inner)
