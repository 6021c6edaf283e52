"""What someone who wants in puts into a cache, a model or a teacher, and a file that tells of it.

Each payload makes the file ``canary`` if it is run. ``test_hostile.py`` first sees to it that they
do where they are trusted, so that a canary that is not there says something.
"""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache_format.metadata.receipt import teacher_receipt_bytes
from cache_format.opening import open_cache
from tests.support.sample_cache import reseal

TEMPLATE = (
    "{{% for c in ''.__class__.__mro__[1].__subclasses__() %}}{{{{ c }}}}{{% endfor %}}"
    "{{{{ cycler.__init__.__globals__.os.system('touch {canary}') }}}}"
)


def code(canary: Path) -> str:
    """A module that makes ``canary`` when it is imported, and has every class one may ask for."""
    return (
        f"open({str(canary)!r}, 'w').close()\n"
        "from transformers import PretrainedConfig, PreTrainedTokenizerFast\n"
        "class Evil(PreTrainedTokenizerFast): pass\n"
        "class EvilConfig(PretrainedConfig): model_type = 'evil'\n"
        "def generate(*args, **kwargs): pass\n"
    )


def pickled(canary: Path) -> bytes:
    """Weights that make ``canary`` when they are unpickled."""

    class Weights:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(canary),))

    return pickle.dumps(Weights())


def payloads(canary: Path) -> dict[str, bytes]:
    """Files for a directory that holds a model, a tokenizer or both."""
    source = code(canary).encode()
    return {
        "tokenizer_evil.py": source,
        "modeling_evil.py": source,
        "vocab.py": source,
        "custom_generate/generate.py": source,
        "custom_generate/requirements.txt": b"",
        "pytorch_model.bin": pickled(canary),
        "adapter_model.bin": pickled(canary),
        "tokenizer_vocab.pkl": pickled(canary),
        "chat_template.jinja": TEMPLATE.format(canary=canary).encode(),
    }


TOKENIZER_CONFIG = {
    "auto_map": {"AutoTokenizer": ["tokenizer_evil.Evil", "tokenizer_evil.Evil"]},
    "tokenizer_class": "Evil",
    "tokenizer_file": "/etc/passwd",
}
CONFIG = {
    "auto_map": {
        "AutoConfig": "modeling_evil.EvilConfig",
        "AutoModelForCausalLM": "modeling_evil.Evil",
        "AutoTokenizer": ["tokenizer_evil.Evil", "tokenizer_evil.Evil"],
    },
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "transformers_weights": "adapter_model.bin",
    "attn_implementation": "stranger/kernel",
    "tokenizer_class": "Evil",
    "_name_or_path": "stranger/model",
}


def change_json(path: Path, changes: Mapping[str, Any]) -> None:
    """Put ``changes`` into the object in ``path``, which may not be there yet."""
    fields = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**fields, **changes}))


def spoil_model(directory: Path, canary: Path) -> Path:
    """Put every payload into a model directory; its weights stay as they are."""
    for name, data in payloads(canary).items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(data)
    (directory / "modeling_distil_xlstm.py").write_text(code(canary))
    change_json(directory / "tokenizer_config.json", TOKENIZER_CONFIG)
    change_json(directory / "config.json", CONFIG)
    change_json(directory / "generation_config.json", {"custom_generate": str(directory)})
    change_json(directory / "adapter_config.json", {"base_model_name_or_path": "stranger/base"})
    return directory


def spoil_cache(cache: Path, target: Path, canary: Path) -> Path:
    """A copy of ``cache`` with every payload among its teacher's files, all hashes made right."""
    shutil.copytree(cache, target)
    teacher = target / "teacher"
    for name, data in payloads(canary).items():
        (teacher / name).parent.mkdir(exist_ok=True)
        (teacher / name).write_bytes(data)
    change_json(teacher / "tokenizer_config.json", TOKENIZER_CONFIG)
    change_json(teacher / "config.json", CONFIG)
    change_json(teacher / "generation_config.json", {"custom_generate": "."})
    rehash_teacher(target)
    return target


def rehash_teacher(cache: Path) -> None:
    """Let the receipt and the manifest vouch for what is in ``teacher/`` now."""
    directory = cache / "teacher"
    files = {
        path.relative_to(directory).as_posix(): (
            path.stat().st_size,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    write_teacher_receipt(cache, files)


def write_teacher_receipt(cache: Path, files: dict[str, tuple[int, str]]) -> None:
    """Let the cache say that these are its teacher's files."""
    data = teacher_receipt_bytes(files, open_cache(cache).spec)
    (cache / "receipts" / "teacher.json").write_bytes(data)

    def change(fields: dict[str, Any]) -> None:
        fields["teacher_receipt_sha256"] = hashlib.sha256(data).hexdigest()

    reseal(cache / "manifest.json", change)
