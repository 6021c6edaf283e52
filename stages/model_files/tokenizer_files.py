"""A tokenizer as data: which files it may be made of, how it is loaded, how it is passed on.

A tokenizer lies in a teacher's directory, in a cache and in a student's, any of which may come from
a stranger. transformers can be told by such a directory to run Python that lies in it, or on the
Hub (``auto_map``): never here. Chat templates are Jinja, which transformers renders in a sandbox.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cache_format.metadata.strict_json import read_object
from stages.model_files.redirects import refuse_redirects

CONFIG = "tokenizer_config.json"
READ_FILES = (
    "added_tokens.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    CONFIG,
    "vocab.json",
    "vocab.txt",
)
"""What a tokenizer's ids depend on."""
TOKENIZER_FILES = (*READ_FILES, "chat_template.jinja")
"""All that is passed on of a tokenizer, to a cache or with a student."""

_CODE = ("auto_map", "init_inputs")
_DATA_OR_PATH = ("vocab", "merges")  # which transformers reads as a file if it is a path
_FAST_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")  # as 4.x and 5.x call it


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer exactly as its ``tokenizer.json`` has it. Raises ValueError if there is none.

    ``AutoTokenizer`` goes by the model's type: beside a Qwen2 model it would split the text by
    Qwen2's rules whatever that file says, and the teacher would read ids it was not trained on.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    refuse_redirects(directory / CONFIG)
    has_fast = (directory / "tokenizer.json").is_file()
    if not has_fast:
        refuse_redirects(directory / "config.json")
        _refuse_code(directory)
    auto: Any = AutoTokenizer
    fast: Any = PreTrainedTokenizerFast
    try:
        if has_fast:
            tokenizer = fast.from_pretrained(directory)
        else:
            tokenizer = auto.from_pretrained(directory, trust_remote_code=False)
        tokenizer("a")  # some settings of a wrong type are only met here
        return tokenizer
    except MemoryError:
        raise
    except Exception as error:  # Rust's and transformers' own, of whatever type, for a wrong file
        raise ValueError(
            f"{directory}: its tokenizer is unreadable: {type(error).__name__}: {error}. Put its "
            "files back from where they came."
        ) from error


def pass_on_tokenizer(
    names: Iterable[str], locate: Callable[[str], Path], target: Path
) -> tuple[str, ...]:
    """Copy a tokenizer's files among ``names``, each found by ``locate``, into ``target``.

    What could make another program run code is left out of its configuration; returns the keys.
    """
    chosen = sorted(set(names) & set(TOKENIZER_FILES))
    for name in chosen:
        shutil.copyfile(locate(name), target / name)
    if CONFIG not in chosen:
        return ()
    fields = read_object(locate(CONFIG), "Make the cache again from an intact teacher.")
    kept = _without_code(fields, has_fast="tokenizer.json" in chosen)
    if kept != fields:
        (target / CONFIG).write_text(json.dumps(kept, indent=2) + "\n", "ascii")
    return tuple(key for key in fields if kept.get(key) != fields[key])


def _without_code(fields: dict[str, Any], *, has_fast: bool) -> dict[str, Any]:
    """``fields`` without what names code or other files, and of a class of transformers' own."""
    kept = {
        key: value
        for key, value in fields.items()
        if not _names_other_files(key) and key not in _CODE
    }
    name = kept.get("tokenizer_class")
    if name is None:
        return kept
    if has_fast:  # which is all that the ids were made by
        return kept | {"tokenizer_class": name if name in _FAST_CLASSES else _FAST_CLASSES[0]}
    if not _is_known_class(name):
        del kept["tokenizer_class"]
    return kept


def _names_other_files(key: str) -> bool:
    return key in _DATA_OR_PATH or key.endswith(("_file", "_files"))


def require_no_code(directory: Path) -> None:
    """Raise ValueError where a tokenizer's configuration has what is not passed on with it."""
    path = directory / CONFIG
    if not path.is_file():
        return
    fields = read_object(path, "Put it back from where it came.")
    kept = _without_code(fields, has_fast=(directory / "tokenizer.json").is_file())
    for key in fields:
        if kept.get(key) != fields[key]:
            raise ValueError(
                f"{path}: {key} may name foreign code or another file. Delete that key."
            )


def _is_known_class(name: object) -> bool:
    import transformers

    is_name = isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9]+Tokenizer(Fast)?", name)
    return bool(is_name) and hasattr(transformers, str(name))


def _refuse_code(directory: Path) -> None:
    """Raise ValueError for a tokenizer that is Python of its repository's own."""
    path = directory / CONFIG
    if not path.is_file():
        return
    fields = read_object(path, "Put it back from where it came.")
    if "auto_map" in fields:
        raise ValueError(
            f"{path}: its tokenizer is Python code from its repository (auto_map), which is "
            "never run here, and there is no tokenizer.json. If you trust that code, convert it "
            "once: load it with transformers and save `tokenizer.backend_tokenizer` as "
            "tokenizer.json; or use a teacher that has one."
        )
    for key, value in fields.items():
        if value and (_names_other_files(key) or key == "init_inputs"):
            raise ValueError(
                f"{path}: {key} makes transformers read another file than those that identify the "
                "tokenizer, and there is no tokenizer.json. Delete that key."
            )
