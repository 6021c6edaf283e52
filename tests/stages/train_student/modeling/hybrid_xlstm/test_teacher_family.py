"""Which teachers a hybrid student is made from, and what is kept of their config."""

import json
from typing import Any

import pytest

from stages.train_student.modeling.hybrid_xlstm.teacher_family import (
    FAMILIES,
    family_config,
    family_model,
    teacher_fields,
)
from stages.train_student.students.stored_teacher import is_teacher_config
from tests.support.hybrid_students import TEACHERS, teacher_config

names = pytest.mark.parametrize("name", TEACHERS)


@names
def test_what_is_kept_of_a_config_is_plain_and_makes_the_same_again(name: str) -> None:
    fields = teacher_fields(teacher_config(name))
    assert json.loads(json.dumps(fields)) == fields
    assert is_teacher_config(fields)
    assert teacher_fields(fields) == fields
    assert family_config(fields).model_type == TEACHERS[name]["model_type"]


def test_every_family_has_a_teacher_in_the_tests() -> None:
    assert {fields["model_type"] for fields in TEACHERS.values()} == FAMILIES.keys()


def test_older_fields_of_rotation_are_understood() -> None:
    older = {"rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    found = teacher_fields(teacher_config("qwen2", **older))["rope_parameters"]
    assert (found["rope_theta"], found["rope_type"], found["factor"]) == (500.0, "linear", 2.0)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"model_type": "gpt2"}, "made from llama, mistral, .*found model_type 'gpt2'"),
        ("llama", {"model_type": None}, "found model_type None"),
        ("mistral", {"sliding_window": 64}, "sliding_window: 64 positions"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
            "layer_types: 'sliding_attention' cannot be replaced",
        ),
        (
            "qwen3",
            {"layer_types": ["full_attention", "sliding_attention"] * 2},
            "sliding_att|layer",
        ),
        ("llama", {"quantization_config": {"bits": 4}}, "weights are quantized"),
        ("llama", {"num_key_value_heads": 3}, "3 does not divide the 4 heads of queries. Download"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type 'dynamic' depends on the length",
        ),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e4,
                    "partial_rotary_factor": 0.5,
                }
            },
            "partial_rotary_factor",
        ),
        ("llama", {"hidden_size": "wide"}, "config.json: "),
    ],
)
def test_a_teacher_that_computes_something_else_is_refused_by_name(
    name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        teacher_fields(teacher_config(name, **changes))


def test_a_rotation_without_its_numbers_is_refused() -> None:
    rope = {"rope_type": "llama3", "rope_theta": 1e4}
    with pytest.raises(ValueError, match="rope"):
        family_model(family_config(teacher_config("llama", rope_parameters=rope)))


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gpt2"},
        {"model_type": ["llama"]},
        {"hidden_size": 0},
        {"hidden_size": 2.0},
        {"num_hidden_layers": 2**40},
        {"num_attention_heads": True},
        {"attention_bias": 1},
        {"hidden_act": "__import__"},
        {"rms_norm_eps": float("nan")},
        {"rms_norm_eps": 0.0},
        {"rms_norm_eps": "1e-6"},
        {"rope_parameters": None},
        {"rope_parameters": {"rope_type": "dynamic"}},
        {"rope_parameters": {"rope_type": ["default"]}},
        {"rope_parameters": {"rope_type": "default", "factor": float("inf")}},
        {"rope_parameters": {"rope_type": "default", "factor": [1.0]}},
        {"rope_parameters": {f"x{n}": 1.0 for n in range(17)}},
        {"sliding_window": 4},
        {"auto_map": {"AutoModel": "code.Model"}},
        {"_attn_implementation": "flash"},
    ],
)
def test_a_stored_config_with_an_impossible_value_is_not_taken(change: dict[str, Any]) -> None:
    fields = teacher_fields(teacher_config("llama"))
    assert is_teacher_config(fields)
    assert not is_teacher_config(fields | change)


@pytest.mark.parametrize("value", [None, [], "llama", {}, {"model_type": "llama"}])
def test_a_stored_config_that_is_none_is_not_taken(value: object) -> None:
    assert not is_teacher_config(value)
