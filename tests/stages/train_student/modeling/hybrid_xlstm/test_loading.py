"""Loading and saving as Hugging Face does it: round trips, precisions, code in a directory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from stages.train_student.modeling.hybrid_xlstm.configuration import HybridXLSTMConfig
from stages.train_student.modeling.hybrid_xlstm.modeling import HybridXLSTMForCausalLM
from tests.support.hybrid_students import (
    TEACHERS,
    make_ids,
    make_noisy_hybrid,
    make_teacher,
)

SETTINGS: dict[str, Any] = {"pattern": "hybrid,attention,mlstm", "window": 6, "num_sinks": 2}


def load(path: Path, **options: Any) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(path, **options)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "trained"),
    [*((name, "new") for name in TEACHERS), ("qwen2", "mixers"), ("qwen2", "all")],
)
@torch.no_grad()
def test_a_saved_student_is_the_same_bit_for_bit(name: str, trained: str, tmp_path: Path) -> None:
    student = make_noisy_hybrid(make_teacher(name, torch.bfloat16), trained=trained, **SETTINGS)
    student.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is HybridXLSTMForCausalLM
    for key, tensor in student.state_dict().items():
        found = loaded.state_dict()[key]
        assert (found.dtype, torch.equal(found, tensor)) == (tensor.dtype, True), key
    assert {n: p.requires_grad for n, p in loaded.named_parameters()} == {
        n: p.requires_grad for n, p in student.named_parameters()
    }
    ids = make_ids(2, 30)
    assert torch.equal(loaded(ids).logits, student(ids).logits)
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    assert {p.name for p in again.iterdir()} == {p.name for p in tmp_path.iterdir() if p.is_file()}


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"dtype": torch.bfloat16}, torch.bfloat16),
        ({"dtype": "float16"}, torch.float16),
        ({"dtype": torch.float64}, torch.float64),
    ],
)
@pytest.mark.parametrize("trained", ["new", "all"])
@torch.no_grad()
def test_what_was_trained_takes_the_given_dtype_and_copies_keep_theirs(
    tmp_path: Path, options: dict[str, Any], dtype: torch.dtype, trained: str
) -> None:
    student = make_noisy_hybrid(make_teacher("qwen3"), trained=trained, **SETTINGS)
    student.save_pretrained(tmp_path)
    loaded = load(tmp_path, **options)
    new = set(student.new_parameters())
    for name, weight in loaded.named_parameters():
        expected = dtype if trained == "all" or name in new else torch.float32
        assert weight.dtype == expected, name
    ids = make_ids(2, 30)
    expected_logits, found = student(ids).logits, loaded(ids).logits
    is_double = dtype == torch.float64 and trained == "all"
    assert found.dtype == (torch.float64 if is_double else torch.float32)
    error = float((found - expected_logits).norm() / expected_logits.norm())
    assert error < {torch.bfloat16: 0.05, torch.float16: 0.01}.get(dtype, 1e-5)


def test_the_config_holds_what_the_model_is_made_of(tmp_path: Path) -> None:
    student = make_noisy_hybrid(make_teacher("qwen3"), **SETTINGS)
    student.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, HybridXLSTMConfig)
    for key, value in SETTINGS.items():
        assert getattr(config, key) == value
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["teacher_config"] == student.config.teacher_config
    assert stored["model_type"] == "hybrid_xlstm"
    names = {reference.partition(".")[0] for reference in stored["auto_map"].values()}
    assert names == {"modeling_hybrid_xlstm"}


def test_a_directory_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    make_noisy_hybrid(make_teacher("qwen3"), **SETTINGS).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.0.self_attn.input_gate.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing, '\S+input_gate.weight' among"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pattern": "hybrid*2"}, "names 2 layers, but the teacher has 3"),
        ({"hidden_size": 64}, "hidden_size, head_rows and tie_word_embeddings are"),
        ({"head_rows": 98}, "hidden_size, head_rows and tie_word_embeddings are"),
        ({"tie_word_embeddings": True}, "hidden_size, head_rows and tie_word_embeddings are"),
        ({"teacher_config": None}, "teacher_config is missing"),
    ],
)
def test_a_config_whose_parts_do_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    config = make_noisy_hybrid(make_teacher("qwen3"), **SETTINGS).config
    for key, value in change.items():
        setattr(config, key, value)
    with pytest.raises(ValueError, match=message):
        HybridXLSTMForCausalLM(config)


def test_save_pretrained_refuses_push_to_hub(tmp_path: Path) -> None:
    student = make_noisy_hybrid(make_teacher("llama"), **SETTINGS)
    with pytest.raises(ValueError, match="push_to_hub"):
        student.save_pretrained(tmp_path, push_to_hub=True)
    assert not list(tmp_path.iterdir())


def test_device_maps(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="device maps need accelerate")
    student = make_noisy_hybrid(make_teacher("qwen2"), **SETTINGS)
    student.save_pretrained(tmp_path)
    ids = make_ids(2, 9)
    for device_map in ("cpu", "auto", {"model": "cpu", "lm_head": "cpu"}):
        loaded = load(tmp_path, device_map=device_map)
        assert torch.equal(loaded(ids).logits, student(ids).logits)
    assert "Qwen2Model" in loaded._no_split_modules


_ELSEWHERE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("stages", "cache_format", "pipeline", "xlstm", "triton"):
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Refuse())
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(".", trust_remote_code=True)
model.save_pretrained(sys.argv[1])
again = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
ids = torch.arange(3, 33)[None]
logits = {"first": model(ids).logits, "again": again(ids).logits}
new = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, do_sample=False)
save_file(logits | {"generated": new}, sys.argv[2])
print(type(model).__module__)
"""


def test_the_directory_s_own_code_loads_it_where_this_project_is_not_installed(
    tmp_path: Path,
) -> None:
    """Nor xlstm or Triton; bit for bit, and what is saved again has all that it had."""
    student = make_noisy_hybrid(make_teacher("qwen3"), **SETTINGS)
    model = tmp_path / "model"
    student.save_pretrained(model)
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE, str(tmp_path / "again"), str(tmp_path / "logits")],
        env=environment | {"HF_HOME": str(tmp_path / "home")},
        cwd=model,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("transformers_modules.")
    found = load_file(tmp_path / "logits")
    ids = torch.arange(3, 33)[None]
    with torch.no_grad():
        expected = student(ids).logits
        generated = student.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, do_sample=False
        )
    assert torch.equal(found["first"], expected)
    assert torch.equal(found["again"], expected)
    assert torch.equal(found["generated"], generated)
    names = {path.name for path in (tmp_path / "again").iterdir()}
    assert names == {path.name for path in model.iterdir()} - {"__pycache__"}
