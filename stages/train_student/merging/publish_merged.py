"""A merged student as a model directory: like any other, and published whole or not at all.

In: parents of one origin and their weights. Out: the directory. Its config.json names the parents
(``merged_from``), and no cache and number of steps, as it has several.
"""

import json
import os
import shutil
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from cache_format.metadata.strict_json import read_object
from cache_format.storage.atomic import make_directory, publish_directory, remove_leftovers
from stages.model_files.redirects import refuse_redirects
from stages.model_files.tensor_stream import write_tensors
from stages.model_files.tokenizer_files import TOKENIZER_FILES, pass_on_tokenizer
from stages.model_files.weight_files import INDEX
from stages.train_student.export.checksums import require_unchanged, write_checksums
from stages.train_student.export.stored_student import stored_settings
from stages.train_student.merging.linear_merge import merged_tensors, ordered_names
from stages.train_student.merging.merged_card import merged_card
from stages.train_student.merging.parents import Parent, require_one_origin, weights_sha256
from stages.train_student.students.student import named_origin

_GENERATION = "generation_config.json"
_KEPT = {"architectures", "model_type", "transformers_version"}


def publish_merged(
    parents: Sequence[Parent], weights: Sequence[float], target: Path, how: str
) -> None:
    """Write Σ λ θ of ``parents`` at ``target``; ``how`` is a sentence for the model card.

    The weights are laid out in files as those of the first parent. Raises ValueError where the
    parents are not of one origin, FileExistsError where something is at ``target``.
    """
    require_one_origin(parents)
    first = parents[0]
    ancestry = ancestors(parents, weights)
    make_directory(target.parent)
    remove_leftovers(target.parent, target.name)
    with publish_directory(target) as temporary:
        _write_weights(parents, weights, temporary)
        _write_config(parents, ancestry, temporary / "config.json")
        _copy_rest(first.directory, temporary)
        for name, text in first.kind.directory_code.files.items():
            (temporary / name).write_text(text, encoding="utf-8")
        card = merged_card(first.config, ancestry, how)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        write_checksums(temporary)


def ancestors(parents: Sequence[Parent], weights: Sequence[float]) -> list[dict[str, Any]]:
    """``merged_from`` of config.json."""
    return [
        {
            "name": parent.name,
            "weight": weight,
            "weights_sha256": weights_sha256(parent),
            "cache_id": parent.config.cache_id,
            "num_steps": parent.config.num_steps,
        }
        for parent, weight in zip(parents, weights, strict=True)
    ]


def _write_weights(parents: Sequence[Parent], weights: Sequence[float], directory: Path) -> None:
    stored = parents[0].tensors
    for file, group in groupby(ordered_names(parents[0]), key=lambda name: stored[name].file):
        names = list(group)
        layout = {name: (stored[name].dtype, stored[name].shape) for name in names}
        with (directory / file).open("wb") as sink:
            write_tensors(sink, layout, merged_tensors(parents, weights, names))


def _write_config(parents: Sequence[Parent], ancestry: list[dict[str, Any]], path: Path) -> None:
    """The first parent's settings; nothing else that its file may hold, and our own code's names.

    What they began with is named where it is the same.
    """
    parent = parents[0]
    fields = read_object(parent.directory / "config.json", "Copy the whole directory again.")
    known = (stored_settings(parent.kind).keys() - {"cache_ids"}) | _KEPT
    if len({named_origin(parent.config) for parent in parents}) > 1:
        known -= {"origin_sha256"}
    kept = {key: value for key, value in fields.items() if key in known}
    kept |= {
        "architectures": [parent.kind.model_class.__name__],
        "auto_map": dict(parent.kind.directory_code.auto_map),
        "cache_id": None,
        "num_steps": None,
        "merged_from": ancestry,
    }
    path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _copy_rest(source: Path, target: Path) -> None:
    names = [*TOKENIZER_FILES, _GENERATION, INDEX]
    require_unchanged(source, names)
    refuse_redirects(source / _GENERATION)
    pass_on_tokenizer(os.listdir(source), source.joinpath, target)
    for name in (_GENERATION, INDEX):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
