"""Keys by which a model directory tells transformers to read other files than the usual ones.

A cache is identified by the hashes of the usual files, and a student is published as those. So a
directory with such a key is refused, wherever in its JSON the key is.
"""

from collections.abc import Iterator
from pathlib import Path

from cache_format.metadata.strict_json import read_object

_REDIRECTS = ("configuration_files", "fast_tokenizer_files", "transformers_weights")
_STEP = "Put it back from where the model came."


def refuse_redirects(path: Path) -> None:
    """Raise ValueError where the JSON file at ``path``, if any, names files to read instead."""
    if not path.is_file():
        return
    for key in _keys(read_object(path, _STEP)):
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
