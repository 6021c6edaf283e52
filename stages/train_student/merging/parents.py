"""The students that are merged: each one whole, all of one origin.

In: model directories. Out: ``Parent`` of each, after every refusal that needs no numbers. A sum of
weights means something only where the students began with the same ones and have the same parts:
kind, architecture and teacher must agree, and the hash of the trained weights that they began with.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from cache_format.storage.atomic import open_regular
from stages.train_student.export.stored_student import check_stored_student, stored_settings
from stages.train_student.students.student import StudentKind, named_origin

_OWN = {
    *("cache_id", "cache_ids", "num_steps", "merged_from", "teacher", "use_cache", "dropout"),
    "origin_sha256",
}
"""Settings in which students of one origin may differ; the teacher is compared by its hashes."""
_TEACHER = ("weights_sha256", "tokenizer_sha256", "files_sha256")
_STEP = "Merge students that were trained from the same initial weights and the same teacher."


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a weight lies."""

    file: str
    dtype: str
    """As safetensors names it."""
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A student to be merged."""

    name: str
    """What people call it."""
    directory: Path
    kind: StudentKind[Any, Any]
    config: Any
    tensors: dict[str, StoredTensor]


def read_parent(name: str, directory: Path) -> Parent:
    """The student in the model directory ``directory``. Raises ValueError unless it is whole."""
    kind, config, files = check_stored_student(directory)
    tensors = {}
    for file in files:
        with safe_open(directory / file, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118  (no mapping)
                part = weights.get_slice(key)
                tensors[key] = StoredTensor(
                    file=file, dtype=part.get_dtype(), shape=tuple(part.get_shape())
                )
    return Parent(name=name, directory=directory, kind=kind, config=config, tensors=tensors)


def require_one_origin(parents: Sequence[Parent]) -> None:
    """Raise ValueError where two of ``parents`` differ in what a sum needs to be the same."""
    first = parents[0]
    if len({parent.directory.resolve() for parent in parents}) < len(parents):
        raise ValueError(f"{first.directory}: a student is given twice. Give each once.")
    for parent in parents:
        if parent.config.teacher is None:
            raise ValueError(
                f"{parent.directory}: config.json does not record the student's teacher. {_STEP}"
            )
    for other in parents[1:]:
        differing = _differing(first, other)
        if differing:
            raise ValueError(
                f"{other.directory}: not of one origin with {first.directory}: "
                f"{'; '.join(differing)}. {_STEP}"
            )


def require_one_beginning(parents: Sequence[Parent]) -> None:
    """Raise ValueError where two of ``parents`` are known to have begun with other weights."""
    known = [(parent, origin) for parent in parents if (origin := named_origin(parent.config))]
    for parent, origin in known[1:]:
        first, expected = known[0]
        if origin != expected:
            raise ValueError(
                f"{parent.directory}: began with other weights than {first.directory}: "
                f"origin_sha256 is {origin[:12]}…, expected {expected[:12]}…. The sum of such "
                "students is mostly no student. Train them with the same recipe and seed or, on "
                "unlike machines, each from the weights of the same student."
            )


def of_unknown_beginning(parents: Sequence[Parent]) -> list[Parent]:
    """Those that do not tell what they began with: older versions did not record it."""
    return [parent for parent in parents if named_origin(parent.config) is None]


def frozen_names(parent: Parent) -> frozenset[str]:
    """The weights that were not trained, which all parents share."""
    with torch.device("meta"):
        model = parent.kind.model_class(parent.config)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    return frozenset(parent.tensors) - trained


def weights_sha256(parent: Parent) -> str:
    """One hash over the names and contents of the files that hold the weights."""
    lines = []
    for file in sorted({tensor.file for tensor in parent.tensors.values()}):
        with open_regular(parent.directory / file) as source:
            lines.append(f"{hashlib.file_digest(source, 'sha256').hexdigest()}  {file}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _differing(first: Parent, other: Parent) -> list[str]:
    kinds = first.config.model_type, other.config.model_type
    if kinds[0] != kinds[1]:
        return [f"kind {kinds[1]!r}, expected {kinds[0]!r}"]
    found = []
    for key in sorted(stored_settings(first.kind).keys() - _OWN):
        own, theirs = _value(first.config, key), _value(other.config, key)
        if own != theirs:
            found.append(f"{key} {theirs!r}, expected {own!r}")
    for key in _TEACHER:
        own, theirs = first.config.teacher.get(key), other.config.teacher.get(key)
        if own != theirs:
            found.append(f"teacher's {key} {theirs}, expected {own}")
    if not found and first.tensors.keys() != other.tensors.keys():
        name = min(first.tensors.keys() ^ other.tensors.keys())
        found.append(f"only one of them has the weight {name!r}")
    if not found:
        found = [
            f"{name} is {theirs.dtype} {list(theirs.shape)}, expected {own.dtype} {list(own.shape)}"
            for name, own in first.tensors.items()
            if ((theirs := other.tensors[name]).dtype, theirs.shape) != (own.dtype, own.shape)
        ][:1]
    return found


def _value(config: Any, key: str) -> Any:
    value = getattr(config, key, None)
    return list(value) if isinstance(value, tuple) else value
