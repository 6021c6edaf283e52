"""Identify the teacher that a student's embedding, head and tokenizer come from."""

import hashlib
from collections.abc import Mapping

from cache_format.reader import Cache
from stages.model_files.tokenizer_files import READ_FILES

_FILES = "files_sha256"
_COPIED = ("embedding.safetensors", *READ_FILES)
"""What a student takes from a cache. The hashes of the spec are those of the teacher's own files;
another version may have written other ones into a cache with the same spec."""


def teacher_identity(cache: Cache) -> dict[str, str]:
    """The teacher of ``cache``: where it was read from, and the hashes of what it is.

    ``files_sha256`` is over those files in the cache that become part of a student.
    """
    teacher = cache.spec.teacher
    files = cache.attachments()
    lines = [f"{files[name][1]}  {name}\n" for name in sorted(_COPIED) if name in files]
    return {
        "source": teacher.source,
        "revision": teacher.revision,
        "weights_sha256": teacher.weights_sha256,
        "tokenizer_sha256": teacher.tokenizer_sha256,
        _FILES: hashlib.sha256("".join(lines).encode()).hexdigest(),
    }


def require_same_teacher(what: str, teacher: Mapping[str, str], cache: Cache) -> None:
    """Raise ValueError unless ``cache`` is of the ``teacher`` that ``what`` learned from."""
    if not isinstance(teacher, Mapping):  # a stranger's file may hold anything
        raise ValueError(f"{what}: damaged: teacher: expected an object, found {teacher!r:.200}.")
    other = teacher_identity(cache)
    differing = [
        f"{key} {teacher.get(key)} and {other[key]}"
        for key in ("weights_sha256", "tokenizer_sha256", _FILES)
        if teacher.get(key) != other[key] and (key != _FILES or key in teacher)
    ]
    if differing:
        raise ValueError(
            f"{cache.path}: made by another teacher ({other['source']}) than {what} learned from "
            f"({teacher.get('source')}): {'; '.join(differing)}. Use a cache of its teacher."
        )
