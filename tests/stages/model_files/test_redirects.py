"""Keys that send transformers to other files than those that are hashed."""

import json
from pathlib import Path
from typing import Any

import pytest

from stages.cache_teacher.teacher.teacher_files import resolve_teacher
from stages.model_files.redirects import refuse_redirects
from stages.model_files.tokenizer_files import load_tokenizer
from tests.support.tiny import save_tiny_teacher, tiny_cache_config

KEYS = ("configuration_files", "fast_tokenizer_files", "transformers_weights")


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_configuration_key_that_names_other_files_is_refused(
    tmp_path: Path, file: str, key: str
) -> None:
    teacher = save_tiny_teacher(tmp_path / "teacher")
    config = tiny_cache_config(teacher, "unused")
    resolve_teacher(config)
    change(teacher / file, **{key: ["other.json"]})
    with pytest.raises(ValueError, match=rf"/{file}: {key} makes transformers read other files"):
        resolve_teacher(config)


def test_a_nested_key_that_names_other_files_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    nested = {"text_config": {"parts": [{"transformers_weights": "other.safetensors"}]}}
    path.write_text(json.dumps(nested))
    with pytest.raises(ValueError, match="transformers_weights"):
        refuse_redirects(path)


def test_a_tokenizer_that_names_another_file_is_refused(tmp_path: Path) -> None:
    teacher = save_tiny_teacher(tmp_path / "teacher")
    change(teacher / "tokenizer_config.json", fast_tokenizer_files=["tokenizer.4.0.0.json"])
    with pytest.raises(ValueError, match="fast_tokenizer_files"):
        load_tokenizer(teacher)


def test_null_keys_and_missing_files_are_accepted(tmp_path: Path) -> None:
    refuse_redirects(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(json.dumps(dict.fromkeys(KEYS)))
    refuse_redirects(tmp_path / "config.json")


def test_a_configuration_with_infinity_is_left_to_transformers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"time_step_limit": [0.0, Infinity]}')
    refuse_redirects(tmp_path / "config.json")


@pytest.mark.parametrize("key", ["vocab", "merges", "vocab_file", "gguf_file", "init_inputs"])
def test_without_tokenizer_json_no_other_file_is_named(tmp_path: Path, key: str) -> None:
    teacher = save_tiny_teacher(tmp_path / "teacher")
    (teacher / "tokenizer.json").unlink()
    change(teacher / "tokenizer_config.json", **{key: "/etc/passwd"})
    with pytest.raises(ValueError, match=rf"tokenizer_config\.json: {key} makes transformers read"):
        load_tokenizer(teacher)
