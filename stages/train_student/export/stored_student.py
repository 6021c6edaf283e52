"""A student read from a model directory that anyone may have written: nothing in it is run.

In: the directory. Out: the student, for inference. ``AutoModelForCausalLM.from_pretrained`` does
what such a directory says: fetches adapters and other weights, runs code, unpickles. Here our own
class takes the settings that it knows from ``config.json`` and weights from safetensors, and the
one has to fit the other before memory is taken for either.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cache_format.metadata.strict_json import read_object
from stages.model_files.weight_files import INDEX, pickled_note, weight_files
from stages.train_student.export.checksums import require_unchanged
from stages.train_student.students.registry import SETTINGS, settings_class, student_kind
from stages.train_student.students.stored_values import (
    are_ids,
    are_parents,
    are_texts,
    is_count,
    is_flag,
    is_size,
    is_text,
)
from stages.train_student.students.student import Student, StudentKind

Shape = tuple[int, ...]
_Kind = StudentKind[Any, Any]

_STEP = "Copy the whole directory again, or export the student anew from a checkpoint."
_DTYPES = ("float32", "bfloat16", "float16")
_STORED = ("F64", "F32", "BF16", "F16")
_HEAD = "lm_head.weight"
_WRONG_SIZES = (ValueError, TypeError, ArithmeticError, RuntimeError, AssertionError)


def _is_teacher(value: object) -> bool:
    return value is None or (
        isinstance(value, dict)
        and value.keys() >= {"source", "weights_sha256", "tokenizer_sha256"}
        and all(isinstance(text, str) for text in value.values())
    )


_SETTINGS: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(("vocab_size", "head_rows", "hidden_size"), is_size),
    **dict.fromkeys(("train_head", "use_cache", "tie_word_embeddings"), is_flag),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), are_ids),
    **dict.fromkeys(("embedding_dtype", "dtype"), _DTYPES.__contains__),
    "teacher": _is_teacher,
    "cache_id": is_text,
    "cache_ids": are_texts,
    "num_steps": is_count,
    "origin_sha256": is_text,
    "merged_from": are_parents,
}
"""The settings that are taken from a config.json, and whether a value is one that they may have.

A kind has more of its own.
"""


def stored_settings(kind: _Kind) -> dict[str, Callable[[object], bool]]:
    """The settings of a student of ``kind`` in its config.json, and which values each may have."""
    return {**_SETTINGS, **kind.stored_settings}


def load_stored_student(directory: Path) -> Student:
    """The student in ``directory``.

    Raises ValueError, with the file and what is wrong with it, where there is none that is whole.
    """
    kind, config, names = check_stored_student(directory)
    try:
        tensors = dict(_tensors(directory, names))
    except SafetensorError as error:
        raise _damaged(directory, error) from error
    model: Student = kind.model_class.from_pretrained(None, config=config, state_dict=tensors)
    model.train(False)
    return model


def check_stored_student(directory: Path) -> tuple[_Kind, Any, list[str]]:
    """Kind and settings of the student in ``directory``, and the files of its weights.

    Everything but the weights' numbers is checked. Raises ValueError as ``load_stored_student``.
    """
    kind, config = read_config(directory / "config.json")
    names = weight_files(directory)
    if not names:
        raise ValueError(
            f"{directory}: holds no safetensors weights{pickled_note(directory)}. {_STEP}"
        )
    try:
        _require_fit(directory, kind, config, _shapes(directory, names))
        require_unchanged(directory, ["config.json", INDEX, *names])
    except SafetensorError as error:
        raise _damaged(directory, error) from error
    return kind, config, names


def _damaged(directory: Path, error: SafetensorError) -> ValueError:
    return ValueError(f"{directory}: the weights are damaged ({error}). {_STEP}")


def read_config(path: Path) -> tuple[_Kind, Any]:
    """Kind and settings of a student; whatever else the file holds is passed over."""
    fields = read_object(path, _STEP)
    kind = _kind(path, fields.get("model_type"))
    allowed = stored_settings(kind)
    settings = {name: fields[name] for name in allowed if name in fields}
    for name, value in settings.items():
        if not allowed[name](value):
            problem = kind.stored_problem(name, value) or f"impossible value {value!r:.200}"
            raise ValueError(f"{path}: {name}: {problem}. {_STEP}")
    if settings.get("vocab_size", 0) > settings.get("head_rows", 0):
        raise ValueError(
            f"{path}: vocab_size is {settings.get('vocab_size')}, more than head_rows, which is "
            f"{settings.get('head_rows')}. {_STEP}"
        )
    try:
        return kind, kind.config_class(**settings)
    except Exception as error:  # of a type that only transformers knows
        raise ValueError(f"{path}: {_clause(error)}. {_STEP}") from error


def _clause(error: Exception) -> str:
    """What ``error`` says, without the full stop of a sentence."""
    return str(error).rstrip(". ")


def _kind(path: Path, model_type: object) -> _Kind:
    try:
        settings_class(model_type)
    except ValueError as error:
        raise ValueError(
            f"{path}: no student of this package: expected model_type "
            f"{' or '.join(map(repr, SETTINGS))}, found {model_type!r:.200}"
        ) from error
    return student_kind(str(model_type))


def _require_fit(directory: Path, kind: _Kind, config: Any, found: Mapping[str, Shape]) -> None:
    """Raise ValueError unless the weights are those of a student of ``config``."""
    path = directory / "config.json"
    if problem := kind.blocks_differ(config, found):
        raise ValueError(f"{path}: {problem} {_STEP}")
    try:
        with torch.device("meta"):
            expected = {
                name: tuple(tensor.shape)
                for name, tensor in kind.model_class(config).state_dict().items()
            }
    except _WRONG_SIZES as error:
        reason = _clause(error)
        raise ValueError(f"{path}: its settings make no student: {reason}. {_STEP}") from error
    if config.tie_word_embeddings and _HEAD not in found:
        del expected[_HEAD]
    if missing := sorted(expected.keys() - found.keys()):
        raise ValueError(
            f"{directory}: {len(missing)} weights are missing, {missing[0]!r} among them. {_STEP}"
        )
    if more := sorted(found.keys() - expected.keys()):
        raise ValueError(f"{directory}: holds weights that no student has: {more[0]!r}. {_STEP}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise ValueError(
                f"{directory}: {name}: expected the shape {list(shape)} by config.json, found "
                f"{list(found[name])}. {_STEP}"
            )


def _shapes(directory: Path, names: list[str]) -> dict[str, Shape]:
    """Shape of every weight, from the headers of the files alone."""
    shapes: dict[str, Shape] = {}
    for file in names:
        with safe_open(directory / file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118  (no mapping)
                if name in shapes:
                    raise ValueError(
                        f"{directory / file}: {name}: also in another of its files. {_STEP}"
                    )
                part = weights.get_slice(name)
                if part.get_dtype() not in _STORED:
                    raise ValueError(
                        f"{directory / file}: {name}: expected one of {', '.join(_STORED)}, found "
                        f"{part.get_dtype()}. {_STEP}"
                    )
                shapes[name] = tuple(part.get_shape())
    return shapes


def _tensors(directory: Path, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    for file in names:
        with safe_open(directory / file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118  (no mapping)
                tensor = weights.get_tensor(name)
                if not tensor.isfinite().all():
                    raise ValueError(
                        f"{directory / file}: {name}: holds NaN or infinity, so the student can "
                        f"compute nothing. {_STEP}"
                    )
                yield name, tensor
