"""Identify the teacher that a student's embedding, head and tokenizer come from."""

from collections.abc import Mapping

from cache_format.reader import Cache


def teacher_identity(cache: Cache) -> dict[str, str]:
    """The teacher of ``cache``: where it was read from, and the hashes of what it is."""
    teacher = cache.spec.teacher
    return {
        "source": teacher.source,
        "revision": teacher.revision,
        "weights_sha256": teacher.weights_sha256,
        "tokenizer_sha256": teacher.tokenizer_sha256,
    }


def require_same_teacher(what: str, teacher: Mapping[str, str], cache: Cache) -> None:
    """Raise ValueError unless ``cache`` is of the ``teacher`` that ``what`` learned from."""
    if not isinstance(teacher, Mapping):  # a stranger's file may hold anything
        raise ValueError(f"{what}: damaged: teacher: expected an object, found {teacher!r:.200}.")
    other = teacher_identity(cache)
    differing = [
        f"{key} {teacher.get(key)} and {other[key]}"
        for key in ("weights_sha256", "tokenizer_sha256")
        if teacher.get(key) != other[key]
    ]
    if differing:
        raise ValueError(
            f"{cache.path}: made by another teacher ({other['source']}) than {what} learned from "
            f"({teacher.get('source')}): {'; '.join(differing)}. Use a cache of its teacher."
        )
