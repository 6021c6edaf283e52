"""A student read from a model directory that anyone may have written: nothing in it is run.

In: the directory. Out: the student, for inference. ``AutoModelForCausalLM.from_pretrained`` does
what such a directory says: fetches adapters and other weights, runs code, unpickles. Here our own
class takes the settings that it knows from ``config.json`` and weights from safetensors, and the
one has to fit the other before memory is taken for either.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cache_format.metadata.strict_json import read_object
from stages.model_files.weight_files import pickled_note, weight_files
from stages.train_student.modeling.distil_xlstm.configuration import DistilXLSTMConfig
from stages.train_student.modeling.distil_xlstm.modeling import DistilXLSTMForCausalLM

Shape = tuple[int, ...]

_STEP = "Copy the whole directory again, or export the student anew from a checkpoint."
_DTYPES = ("float32", "bfloat16", "float16")
_STORED = ("F64", "F32", "BF16", "F16")
_MOST = 2**31  # of a size in config.json
_LARGEST_FACTOR = 1024
_BLOCKS = "xlstm_block_stack.blocks."
_HEAD = "lm_head.weight"
_WRONG_SIZES = (ValueError, TypeError, ArithmeticError, RuntimeError, AssertionError)


def _is_size(value: object, least: int = 1) -> bool:
    return type(value) is int and least <= value <= _MOST


def _are_ids(value: object) -> bool:
    ids = value if isinstance(value, list) else [value]
    return value is None or all(_is_size(one, 0) for one in ids)


def _is_factor(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= _LARGEST_FACTOR  # type: ignore[operator]


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_teacher(value: object) -> bool:
    return value is None or (
        isinstance(value, dict)
        and value.keys() >= {"source", "weights_sha256", "tokenizer_sha256"}
        and all(isinstance(text, str) for text in value.values())
    )


_SETTINGS: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(("vocab_size", "head_rows", "hidden_size", "num_blocks"), _is_size),
    **dict.fromkeys(("num_heads", "conv_kernel", "qkv_block_size"), _is_size),
    **dict.fromkeys(("feedforward_factor", "mlstm_factor", "dropout"), _is_factor),
    **dict.fromkeys(("train_head", "use_cache", "tie_word_embeddings"), _is_flag),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), _are_ids),
    **dict.fromkeys(("embedding_dtype", "dtype"), _DTYPES.__contains__),
    "slstm_at": lambda value: isinstance(value, list) and _are_ids(value),
    "teacher": _is_teacher,
    "cache_id": _is_text,
    "num_steps": lambda value: value is None or _is_size(value, 0),
}
"""The settings that are taken from a config.json, and whether a value is one that they may have."""


def load_stored_student(directory: Path) -> DistilXLSTMForCausalLM:
    """The student in ``directory``.

    Raises ValueError, with the file and what is wrong with it, where there is none that is whole.
    """
    config = _read_config(directory / "config.json")
    names = weight_files(directory)
    if not names:
        raise ValueError(
            f"{directory}: holds no safetensors weights{pickled_note(directory)}. {_STEP}"
        )
    try:
        _require_fit(directory, config, _shapes(directory, names))
        tensors = dict(_tensors(directory, names))
    except SafetensorError as error:
        raise ValueError(f"{directory}: the weights are damaged ({error}). {_STEP}") from error
    model: DistilXLSTMForCausalLM = DistilXLSTMForCausalLM.from_pretrained(
        None, config=config, state_dict=tensors
    )
    model.train(False)
    return model


def _read_config(path: Path) -> DistilXLSTMConfig:
    """The settings that a student has; all others that the file holds are passed over."""
    fields = read_object(path, _STEP)
    if fields.get("model_type") != DistilXLSTMConfig.model_type:
        raise ValueError(
            f"{path}: no student of this package: expected model_type "
            f"{DistilXLSTMConfig.model_type!r}, found {fields.get('model_type')!r}"
        )
    settings = {name: fields[name] for name in _SETTINGS if name in fields}
    for name, value in settings.items():
        if not _SETTINGS[name](value):
            raise ValueError(f"{path}: {name}: impossible value {value!r:.200}. {_STEP}")
    if settings.get("vocab_size", 0) > settings.get("head_rows", 0):
        raise ValueError(
            f"{path}: vocab_size is {settings.get('vocab_size')}, more than head_rows, which is "
            f"{settings.get('head_rows')}. {_STEP}"
        )
    try:
        return DistilXLSTMConfig(**settings)
    except Exception as error:  # of a type that only transformers knows
        raise ValueError(f"{path}: {error}. {_STEP}") from error


def _require_fit(directory: Path, config: DistilXLSTMConfig, found: Mapping[str, Shape]) -> None:
    """Raise ValueError unless the weights are those of a student of ``config``."""
    path = directory / "config.json"
    blocks = {name.removeprefix(_BLOCKS).split(".")[0] for name in found if _BLOCKS in name}
    if len(blocks) != config.num_blocks:  # before as many are made
        raise ValueError(
            f"{path}: num_blocks is {config.num_blocks}, but the weights are of {len(blocks)} "
            f"blocks. {_STEP}"
        )
    try:
        with torch.device("meta"):
            expected = {
                name: tuple(tensor.shape)
                for name, tensor in DistilXLSTMForCausalLM(config).state_dict().items()
            }
    except _WRONG_SIZES as error:
        raise ValueError(f"{path}: its settings make no student: {error}. {_STEP}") from error
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
                yield name, weights.get_tensor(name)
