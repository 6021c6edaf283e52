"""A hybrid student from a directory that anyone may have written."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.train_student.export.stored_student import load_stored_student
from tests.support.hybrid_students import make_ids, make_noisy_hybrid, make_teacher

SETTINGS: dict[str, Any] = {"pattern": "hybrid,attention,mlstm", "window": 6, "num_sinks": 2}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    make_noisy_hybrid(make_teacher("qwen2"), **SETTINGS).save_pretrained(tmp_path)
    return tmp_path


def change(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_a_stored_student_is_the_one_that_was_saved(name: str, tmp_path: Path) -> None:
    student = make_noisy_hybrid(make_teacher(name, torch.bfloat16), **SETTINGS)
    student.save_pretrained(tmp_path)
    found: Any = load_stored_student(tmp_path)
    assert not found.training
    assert {n: (p.dtype, p.requires_grad) for n, p in found.named_parameters()} == {
        n: (p.dtype, p.requires_grad) for n, p in student.named_parameters()
    }
    with torch.no_grad():
        assert torch.equal(found(make_ids(2, 20)).logits, student(make_ids(2, 20)).logits)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pattern", "softmax"),
        ("pattern", ["hybrid"]),
        ("window", 0),
        ("window", 2**21),
        ("num_sinks", 4097),
        ("num_sinks", None),
        ("feature_map", "exec"),
        ("feature_map", ["two_signed"]),
        ("trained", "everything"),
        ("embedding_dtype", "float8"),
    ],
)
def test_an_impossible_setting_is_refused_by_name(directory: Path, key: str, value: object) -> None:
    change(directory, **{key: value})
    with pytest.raises(ValueError, match=f"config.json: {key}: impossible value"):
        load_stored_student(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 4000}, "teacher_config has 4000 layers, but the weights have 3"),
        ({"intermediate_size": 2**31}, "expected the shape|its settings make no student"),
        ({"num_attention_heads": 2**20}, "expected the shape|its settings make no student"),
        ({"num_key_value_heads": 3}, "does not divide"),
        ({"model_type": "olmo2"}, "weights"),
        ({"head_dim": 7}, "its settings make no student|weights|expected the shape"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 0.0, "factor": -1.0}}, "config"),
        ({"code": "x"}, "teacher_config: code: expected no such field, found 'x'. Copy"),
        (
            {"num_attention_heads": 0},
            r"teacher_config: num_attention_heads: expected a .* from 1 to 2\^31, found 0",
        ),
        ({"head_dim": -4}, "teacher_config: head_dim: expected a whole number .*, found -4"),
        ({"hidden_act": "nope"}, "teacher_config: hidden_act: expected one of silu, .*'nope'"),
        ({"tie_word_embeddings": False}, r"student anew\. Copy"),
    ],
)
def test_a_teacher_config_that_does_not_fit_is_refused(
    directory: Path, changes: dict[str, Any], message: str
) -> None:
    stored = json.loads((directory / "config.json").read_text())["teacher_config"]
    change(directory, teacher_config=stored | changes)
    with pytest.raises(ValueError, match=message):
        load_stored_student(directory)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"model_type": "llama"}, "vocab_size is missing"),
        ("llama", "expected an object, found 'llama'"),
        (None, r"expected an object, found None\. Copy"),
    ],
)
def test_what_is_no_teacher_config_is_refused(directory: Path, value: object, message: str) -> None:
    change(directory, teacher_config=value)
    with pytest.raises(ValueError, match=f"teacher_config.*{message}"):
        load_stored_student(directory)


def test_code_and_adapters_that_a_config_names_are_passed_over(directory: Path) -> None:
    (directory / "evil.py").write_text("raise SystemExit('run')")
    auto_map = {"AutoModelForCausalLM": "evil.Model"}
    change(directory, auto_map=auto_map, attn_implementation="evil/kernel", adapter="evil")
    for file in directory.glob("*_hybrid_xlstm.py"):
        file.write_text("raise SystemExit('run')")
    assert load_stored_student(directory).config.hidden_size == 32


def test_weights_that_are_missing_or_no_numbers_are_refused(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    name = "model.layers.0.self_attn.feature_k.weight"
    tensors[name][0, 0, 0] = math.nan
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{name}: holds NaN or infinity"):
        load_stored_student(directory)
    del tensors[name]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"1 weights are missing, '{name}' among them"):
        load_stored_student(directory)
