"""A student from a directory that anyone may have written: the same model, or a named error."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.train_student.export.stored_student import load_stored_student
from stages.train_student.modeling.distil_xlstm.modeling import DistilXLSTMForCausalLM
from tests.support.students import publish_student


@pytest.fixture(scope="module")
def whole(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_student(tiny_cache, tmp_path_factory.mktemp("run")) / "model"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def change(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def same_logits(one: Any, other: Any) -> bool:
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        return torch.equal(one(ids).logits, other(ids).logits)


@pytest.mark.parametrize("train_head", [False, True])
def test_a_stored_student_equals_what_transformers_loads(
    tiny_cache: Path, tmp_path: Path, train_head: bool
) -> None:
    path = publish_student(tiny_cache, tmp_path / "run", train_head=train_head) / "model"
    ours: Any = load_stored_student(path)
    theirs = DistilXLSTMForCausalLM.from_pretrained(path)
    settings = ours.config.to_dict(), theirs.config.to_dict()
    for found in settings:  # where it lies, and what only remote code needs
        for key in ("_name_or_path", "architectures", "auto_map"):
            found.pop(key, None)
    assert settings[0] == settings[1]
    assert not ours.training
    assert same_logits(ours, theirs)
    assert {n: (p.dtype, p.requires_grad) for n, p in ours.named_parameters()} == {
        n: (p.dtype, p.requires_grad) for n, p in theirs.named_parameters()
    }
    assert ours.generation_config.to_dict() == theirs.generation_config.to_dict()


def test_sharded_weights_load_like_a_single_file(whole: Path, copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    weight_map = {name: f"model-{n % 2}.safetensors" for n, name in enumerate(tensors)}
    for part in sorted(set(weight_map.values())):
        chosen = {name: tensors[name] for name in tensors if weight_map[name] == part}
        save_file(chosen, copy / part)
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert same_logits(load_stored_student(copy), load_stored_student(whole))


def test_a_weight_in_two_weight_files_is_refused(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    weight_map = {name: f"model-{n % 2}.safetensors" for n, name in enumerate(tensors)}
    for part in sorted(set(weight_map.values())):
        save_file(tensors, copy / part)
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match="also in another of its files"):
        load_stored_student(copy)


def test_settings_that_no_student_has_are_ignored(whole: Path, copy: Path) -> None:
    change(copy, quantization_config={"quant_method": "awq"}, attn_implementation="a/kernel")
    change(copy, transformers_weights="adapter_model.bin", auto_map={"AutoConfig": "evil.Evil"})
    loaded = load_stored_student(copy)
    assert same_logits(loaded, load_stored_student(whole))
    assert getattr(loaded.config, "quantization_config", None) is None


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model_type": "qwen2"}, "no student of this package: .* found 'qwen2'"),
        ({"hidden_size": 10**12}, "hidden_size: impossible value 1000000000000"),
        ({"hidden_size": 2**31}, "settings make no student|expected the shape"),
        ({"vocab_size": 0}, "vocab_size: impossible value 0"),
        ({"vocab_size": True}, "vocab_size: impossible value True"),
        ({"head_rows": 2**30}, r"expected the shape \[1073741824, 32\] by config.json, found"),
        ({"num_blocks": 10**9}, "num_blocks is 1000000000, but the weights have 2 blocks"),
        ({"num_heads": 3}, "num_heads = 3 must divide"),
        ({"slstm_at": [5]}, "settings make no student|weights are missing"),
        ({"slstm_at": 0}, "slstm_at: impossible value 0"),
        ({"feedforward_factor": 1e300}, "feedforward_factor: impossible value 1e"),
        ({"feedforward_factor": 1024}, "expected the shape"),
        ({"mlstm_factor": "a" * 1000}, "mlstm_factor: impossible value 'a{199}\\. Copy"),
        ({"embedding_dtype": "load"}, "embedding_dtype: impossible value 'load'"),
        ({"dtype": "int8"}, "dtype: impossible value 'int8'"),
        ({"train_head": 1}, "train_head: impossible value 1"),
        ({"eos_token_id": "a"}, "eos_token_id: impossible value 'a'"),
        ({"teacher": {"source": "a"}}, "teacher: impossible value"),
        ({"conv_kernel": 2**31}, "settings make no student|expected the shape"),
        ({"qkv_block_size": 64, "num_heads": 1}, "weights are missing|expected the shape"),
    ],
)
def test_invalid_settings_are_named(copy: Path, changes: dict[str, Any], problem: str) -> None:
    change(copy, **changes)
    with pytest.raises(ValueError, match=problem) as raised:
        load_stored_student(copy)
    assert str(copy) in str(raised.value)


def test_missing_extra_and_misshapen_weights_are_named(copy: Path) -> None:
    path = copy / "model.safetensors"
    tensors = load_file(path)
    norm = "xlstm_block_stack.post_blocks_norm.weight"
    for changed, problem in (
        ({k: v for k, v in tensors.items() if k != norm}, f"1 weights are missing, '{norm}'"),
        (tensors | {"evil": torch.zeros(1)}, "weights that no student has: 'evil'"),
        (tensors | {norm: torch.zeros(31)}, r"expected the shape \[32\] by config.json, found"),
        (tensors | {norm: torch.zeros(32, dtype=torch.int8)}, "expected one of F64, .* found I8"),
    ):
        save_file(changed, path)
        with pytest.raises(ValueError, match=problem):
            load_stored_student(copy)


@pytest.mark.parametrize("data", [b"", b"\xff" * 100, b'\x08\0\0\0\0\0\0\0{"a":1}}'])
def test_damaged_weight_files_are_refused(copy: Path, data: bytes) -> None:
    (copy / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="the weights are damaged"):
        load_stored_student(copy)


def test_a_directory_without_safetensors_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no safetensors weights \(its pytorch_model\.bin is a"):
        load_stored_student(copy)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers_are_named(copy: Path, value: float) -> None:
    file = copy / "model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[-1] = value
    save_file(tensors, file)
    with pytest.raises(ValueError, match=rf"{file}: {name}: holds NaN or infinity"):
        load_stored_student(copy)
