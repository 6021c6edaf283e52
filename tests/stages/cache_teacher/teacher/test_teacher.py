"""Which hidden states come out, what is refused before and while loading, what is exported.

B rows, T positions, D width.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.cache_teacher.teacher.teacher import Teacher
from stages.cache_teacher.teacher.teacher_files import resolve_teacher
from stages.compute.device import choose_device
from tests.support.tiny import tiny_cache_config

STARTS = [[], [5], [1, 2, 31], [7, 19, 32]]


def load(directory: Path, **changes: Any) -> Teacher:
    config = tiny_cache_config(directory, "unused", **changes)
    return Teacher(resolve_teacher(config), torch.device("cpu"))


def rows(num_rows: int = 4, length: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 320, (num_rows, length)).astype(np.int32)


def starts_of(lists: list[list[int]]) -> list[np.ndarray]:
    return [np.array(starts, dtype=np.int32) for starts in lists]


def load_head(directory: Path) -> torch.Tensor:
    return load_file(directory / "model.safetensors")["model.embed_tokens.weight"]


def test_hidden_layers_come_in_the_order_requested(tiny_teacher: Path) -> None:
    teacher = load(tiny_teacher)
    last_BTD, (one_BTD, two_BTD) = teacher.forward(rows(), starts_of(STARTS), layers=(1, 2))
    assert torch.equal(two_BTD, last_BTD)  # after the final norm
    assert not torch.equal(one_BTD, last_BTD)
    _, turned = teacher.forward(rows(), starts_of(STARTS), layers=(2, 1, 2))
    for found_BTD, expected_BTD in zip(turned, (two_BTD, one_BTD, two_BTD), strict=True):
        assert torch.equal(found_BTD, expected_BTD)


def test_hidden_layers_not_requested_are_not_kept(tiny_teacher: Path) -> None:
    """Only the blocks that were asked for have something that looks at their outputs."""
    teacher = load(tiny_teacher)
    blocks, seen = list(teacher._model.model.layers), []
    for block in blocks:
        block.register_forward_pre_hook(lambda block, _: seen.append(len(block._forward_hooks)))
    for layers, watched in (((), [0, 0]), ((2,), [0, 0]), ((1,), [1, 0]), ((1, 2), [1, 0])):
        seen.clear()
        _, kept = teacher.forward(rows(), starts_of(STARTS), layers=layers)
        assert len(kept) == len(layers)
        assert seen == watched
        assert not any(block._forward_hooks for block in blocks)


def test_a_forward_pass_can_be_stopped_between_blocks(tiny_teacher: Path) -> None:
    teacher = load(tiny_teacher)
    seen: list[int] = []
    for number, block in enumerate(teacher._model.model.layers):
        block.register_forward_hook(lambda *_, number=number: seen.append(number))

    def check() -> None:
        if seen:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teacher.forward(rows(), starts_of(STARTS), layers=(1,), check=check)
    assert seen == [0]
    seen.clear()
    teacher.forward(rows(), starts_of(STARTS), layers=(1,))
    assert seen == [0, 1]


def test_half_precision_gives_half_hidden_states(tiny_teacher: Path) -> None:
    teacher = load(tiny_teacher, teacher_dtype="bfloat16")
    last_BTD, (one_BTD,) = teacher.forward(rows(), starts_of(STARTS), layers=(1,))
    assert last_BTD.dtype == one_BTD.dtype == torch.bfloat16
    exact_BTD, _ = load(tiny_teacher).forward(rows(), starts_of(STARTS), layers=())
    assert (last_BTD.float() - exact_BTD).abs().mean() < 0.05


def test_flash_attention_needs_a_gpu(tiny_teacher: Path) -> None:
    with pytest.raises(ValueError, match="flash_attention_2 needs a GPU and half precision"):
        load(tiny_teacher, attention="flash_attention_2")


def test_flash_attention_without_its_package_is_refused(tiny_teacher: Path) -> None:
    """transformers would fetch a compiled kernel in its place."""
    settings = {"attention": "flash_attention_2", "teacher_dtype": "bfloat16"}
    source = resolve_teacher(tiny_cache_config(tiny_teacher, "unused", **settings))
    with pytest.raises(ValueError, match="needs the flash-attn package; use varlen"):
        Teacher(source, torch.device("cuda"))


def test_varlen_on_a_gpu_needs_half_precision(tiny_teacher: Path) -> None:
    source = resolve_teacher(tiny_cache_config(tiny_teacher, "unused", attention="varlen"))
    with pytest.raises(ValueError, match="varlen on a GPU needs half precision; use sdpa"):
        Teacher(source, torch.device("cuda"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tied_teacher_exports_its_embedding(
    tiny_teacher: Path, tmp_path: Path, dtype: str
) -> None:
    load(tiny_teacher, teacher_dtype=dtype).export(tmp_path)
    tensors = load_file(tmp_path / "embedding.safetensors")
    assert set(tensors) == {"embedding"}
    expected = load_head(tiny_teacher).to(getattr(torch, dtype))
    assert torch.equal(tensors["embedding"], expected)
    assert json.loads((tmp_path / "teacher.json").read_text()) == {
        "tie_word_embeddings": True,
        "hidden_size": 32,
        "vocab_size": 320,
        "head_rows": 328,
        "eos_token_id": 0,
    }


def test_an_untied_teacher_exports_its_head_too(untied_teacher: Path, tmp_path: Path) -> None:
    load(untied_teacher).export(tmp_path)
    tensors = load_file(tmp_path / "embedding.safetensors")
    weights = load_file(untied_teacher / "model.safetensors")
    assert torch.equal(tensors["embedding"], weights["model.embed_tokens.weight"])
    assert torch.equal(tensors["head"], weights["lm_head.weight"])
    assert json.loads((tmp_path / "teacher.json").read_text())["tie_word_embeddings"] is False


def test_used_and_exported_tokenizers_equal_tokenizer_json(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    teacher = load(tiny_teacher)
    teacher.export(tmp_path)
    text = "the students' 1999 rows\n\n at 東京"
    expected = Tokenizer.from_file(str(tiny_teacher / "tokenizer.json")).encode(text).ids
    assert teacher.source.tokenizer(text)["input_ids"] == expected
    exported = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert exported(text)["input_ids"] == expected
    assert exported.decode(expected) == text
    assert exported.eos_token_id == 0
    # Why it is not left to AutoTokenizer: beside a Qwen2 it splits by Qwen2's rules.
    assert AutoTokenizer.from_pretrained(tiny_teacher)(text)["input_ids"] != expected


def test_the_exported_configuration_is_the_teacher_s(tiny_teacher: Path, tmp_path: Path) -> None:
    load(tiny_teacher).export(tmp_path)
    assert (tmp_path / "config.json").read_bytes() == (tiny_teacher / "config.json").read_bytes()


def test_missing_weights_are_named(tiny_teacher: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_teacher, tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"weights are missing: model\.norm\.weight"):
        load(copy)


def test_unreadable_weight_files_are_named(tiny_teacher: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_teacher, tmp_path / "copy"))
    (copy / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match="the teacher cannot be loaded"):
        load(copy)


def test_an_unknown_or_absent_device_is_refused() -> None:
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="'gpu' is not auto, cpu, cuda or cuda:N"):
        choose_device("gpu")
    with pytest.raises(ValueError, match="'cuda:0' is not there; PyTorch sees 0 GPUs"):
        choose_device("cuda:0")


def test_a_gpu_is_chosen_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="'cuda:2' is not there"):
        choose_device("cuda:2")
