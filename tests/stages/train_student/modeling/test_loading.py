"""Loading and saving as Hugging Face does it: precisions, device maps, a head that was trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from stages.train_student.modeling.distil_xlstm import auto_classes  # noqa: F401 (registers them)
from stages.train_student.modeling.distil_xlstm.build import build_student
from stages.train_student.modeling.distil_xlstm.settings import DistilXLSTMSettings
from tests.support.noisy_students import EOS, ROWS, VOCAB, WIDTH, make_ids, make_noisy_student


def load(path: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, **options)


@pytest.fixture(scope="module")
def student() -> Any:
    return make_noisy_student()  # its embedding and head are bfloat16


@pytest.fixture(scope="module")
def saved(student: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved")
    student.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({}, torch.float32),
        ({"dtype": "auto"}, torch.float32),
        ({"dtype": torch.bfloat16}, torch.bfloat16),
        ({"dtype": "float16"}, torch.float16),
        ({"torch_dtype": torch.bfloat16}, torch.bfloat16),
        ({"dtype": torch.float64}, torch.float64),
    ],
)
def test_blocks_take_the_given_dtype_and_frozen_copies_keep_theirs(
    student: Any, saved: Path, options: dict[str, Any], dtype: torch.dtype
) -> None:
    loaded = load(saved, **options)
    frozen = {"token_embedding.weight", "lm_head.weight"}
    for name, weight in loaded.named_parameters():
        assert weight.dtype == (torch.bfloat16 if name in frozen else dtype), name
    assert loaded.dtype == dtype
    with torch.no_grad():
        expected, found = student(make_ids(2, 30)).logits, loaded(make_ids(2, 30)).logits
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    error = float((found - expected).norm() / expected.norm())
    assert error < {torch.bfloat16: 0.03, torch.float16: 0.004}.get(dtype, 1e-6)


@pytest.mark.parametrize(
    "device_map",
    [
        "cpu",
        "auto",
        {"": "cpu"},
        {"token_embedding": "cpu", "xlstm_block_stack": "cpu", "lm_head": "cpu"},
    ],
    ids=["cpu", "auto", "root", "parts"],
)
@torch.no_grad()
def test_a_student_loaded_with_any_device_map_gives_the_same_logits(
    student: Any, saved: Path, device_map: Any
) -> None:
    pytest.importorskip("accelerate", reason="device maps need accelerate")
    loaded = load(saved, device_map=device_map)
    ids = make_ids(2, 9)
    assert torch.equal(loaded(ids, labels=ids).logits, student(ids).logits)
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    mask = torch.ones_like(ids)
    expected = student.generate(ids, attention_mask=mask, **options)
    assert torch.equal(loaded.generate(ids, attention_mask=mask, **options), expected)


def test_the_stack_is_never_split_or_offloaded(saved: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="device maps need accelerate")
    from accelerate import infer_auto_device_map

    loaded = load(saved)
    stack_bytes = sum(weight.nbytes for weight in loaded.xlstm_block_stack.parameters())
    memory = {"cpu": stack_bytes - 1, "disk": 10**9}
    for whole, splits in ((loaded._no_split_modules, False), (None, True)):
        found = infer_auto_device_map(loaded, memory, no_split_module_classes=whole)
        assert any("blocks" in name for name in found) == splits
    parts = {"token_embedding": "cpu", "xlstm_block_stack": "disk", "lm_head": "cpu"}
    with pytest.raises(ValueError, match=r"device_map: 'xlstm_block_stack\S+ would be fetched"):
        load(saved, device_map=parts, offload_folder=tmp_path)


def make_student_with_own_head(head: Tensor | None, *, tied: bool = False) -> Any:
    embedding = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(3)).bfloat16()
    return build_student(
        DistilXLSTMSettings(
            num_blocks=2, slstm_at=(0,), num_heads=4, qkv_block_size=8, train_head=True
        ),
        hidden_size=WIDTH,
        vocab_size=VOCAB,
        head_rows=ROWS,
        eos_token_id=EOS,
        embedding=embedding,
        head=None if tied else head,
        seed=0,
    )


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_to_be_trained_is_a_float32_copy_of_the_teacher_s(
    tmp_path: Path, tied: bool
) -> None:
    teacher_head = torch.randn(ROWS, WIDTH).bfloat16()
    student = make_student_with_own_head(teacher_head, tied=tied)
    head, embedding = student.lm_head.weight, student.token_embedding.weight
    expected = embedding if tied else teacher_head
    assert head.dtype == torch.float32
    assert head.requires_grad
    assert not embedding.requires_grad
    assert torch.equal(head, expected.float())
    assert not student.config.tie_word_embeddings
    with torch.no_grad():
        head.mul_(2.0)
    assert torch.equal(expected.float() * 2, head)  # the teacher's is untouched
    student.save_pretrained(tmp_path)
    for options in ({}, {"dtype": torch.bfloat16}):
        loaded = load(tmp_path, **options)
        assert loaded.lm_head.weight.dtype == torch.float32
        assert torch.equal(loaded.lm_head.weight, head)
        assert torch.equal(loaded.token_embedding.weight, embedding)
        assert loaded.token_embedding.weight.dtype == torch.bfloat16
        assert loaded.lm_head.weight.requires_grad


def test_a_saved_model_carries_the_code_that_finds_it(saved: Path, tmp_path: Path) -> None:
    load(saved).save_pretrained(tmp_path)
    for path in (saved, tmp_path):
        auto_map = json.loads((path / "config.json").read_text())["auto_map"]
        for class_reference in auto_map.values():
            module, _, name = class_reference.partition(".")
            assert name in (path / f"{module}.py").read_text()


def test_save_pretrained_refuses_push_to_hub(student: Any, tmp_path: Path) -> None:
    """Hugging Face would upload before the code lies beside the weights."""
    with pytest.raises(ValueError, match="push_to_hub"):
        student.save_pretrained(tmp_path, push_to_hub=True)
    assert not list(tmp_path.iterdir())


def test_weights_in_several_files_load_like_one(student: Any, tmp_path: Path) -> None:
    student.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(load(tmp_path)(make_ids(1, 5)).logits, student(make_ids(1, 5)).logits)
