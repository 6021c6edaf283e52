"""Hidden states of packed documents equal those of each document alone; what is exported is true.

B rows, T positions, D width, V vocabulary.
"""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.cache_teacher.teacher import Teacher
from stages.cache_teacher.teacher_files import resolve_teacher
from stages.device import choose_device
from tests.tiny import tiny_config

STARTS = [[], [5], [1, 2, 31], [7, 19, 32]]


def load(directory: Path, **changes: Any) -> Teacher:
    config = tiny_config(directory, "unused", **changes)
    return Teacher(resolve_teacher(config), torch.device("cpu"))


def rows(num_rows: int = 4, length: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 320, (num_rows, length)).astype(np.int32)


def starts_of(lists: list[list[int]]) -> list[np.ndarray]:
    return [np.array(starts, dtype=np.int32) for starts in lists]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_documents_equal_documents_alone(tiny_teacher: Path, attention: str) -> None:
    from transformers import AutoModelForCausalLM

    ids_BT = rows()
    packed_BTD, mean_BTD = load(tiny_teacher, attention=attention).forward(
        ids_BT, starts_of(STARTS), with_mean=True
    )
    assert mean_BTD is not None
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher, dtype=torch.float32)
    for row, starts in enumerate(STARTS):
        bounds = [0, *(start for start in starts if start < 32), 32]
        for low, high in pairwise(bounds):
            alone_T = torch.from_numpy(ids_BT[row, low:high]).long()[None]
            with torch.no_grad():  # transformers' own forward pass, no mask, no positions
                output = model(alone_T, output_hidden_states=True)
            layers = output.hidden_states[1:]
            torch.testing.assert_close(packed_BTD[row, low:high], layers[-1][0], atol=1e-4, rtol=0)
            torch.testing.assert_close(
                mean_BTD[row, low:high], torch.stack(layers).mean(0)[0], atol=1e-4, rtol=0
            )
            logits = load_head(tiny_teacher) @ packed_BTD[row, low:high].T
            torch.testing.assert_close(logits.T, output.logits[0], atol=1e-4, rtol=0)


def load_head(directory: Path) -> torch.Tensor:
    return load_file(directory / "model.safetensors")["model.embed_tokens.weight"]


def test_the_mean_is_made_only_when_wanted(tiny_teacher: Path) -> None:
    _, mean_BTD = load(tiny_teacher).forward(rows(), starts_of(STARTS), with_mean=False)
    assert mean_BTD is None


def test_half_precision_gives_half_hidden_states_and_a_float_mean(tiny_teacher: Path) -> None:
    teacher = load(tiny_teacher, teacher_dtype="bfloat16")
    last_BTD, mean_BTD = teacher.forward(rows(), starts_of(STARTS), with_mean=True)
    assert last_BTD.dtype == torch.bfloat16
    assert mean_BTD is not None
    assert mean_BTD.dtype == torch.float32
    exact_BTD, _ = load(tiny_teacher).forward(rows(), starts_of(STARTS), with_mean=False)
    assert (last_BTD.float() - exact_BTD).abs().mean() < 0.05


def test_flash_attention_gets_one_row_whose_positions_restart(
    tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernel is not to be had on a CPU; what it is given is: packing by positions alone."""
    teacher = load(tiny_teacher)
    expected_BTD, expected_mean = teacher.forward(rows(), starts_of(STARTS), with_mean=True)
    calls: list[dict[str, Any]] = []
    run_body = teacher._model.base_model.forward

    def body(**inputs: Any) -> Any:
        calls.append(inputs)
        return run_body(**inputs)

    monkeypatch.setattr(teacher._model.base_model, "forward", body)
    object.__setattr__(teacher.source.spec, "attention", "flash_attention_2")
    last_BTD, mean_BTD = teacher.forward(rows(), starts_of(STARTS), with_mean=True)
    (call,) = calls
    assert call["attention_mask"] is None
    assert call["use_cache"] is False
    assert call["input_ids"].shape == (1, 128)
    lengths = np.diff([0, 32, 37, 64, 65, 66, 95, 96, 103, 115, 128])
    assert call["position_ids"][0].tolist() == [p for length in lengths for p in range(length)]
    # With one row, sdpa too infers the packing from the positions.
    torch.testing.assert_close(last_BTD, expected_BTD, atol=1e-4, rtol=0)
    torch.testing.assert_close(mean_BTD, expected_mean, atol=1e-4, rtol=0)


def test_flash_attention_needs_a_gpu(tiny_teacher: Path) -> None:
    with pytest.raises(ValueError, match="flash_attention_2 needs a GPU and half precision"):
        load(tiny_teacher, attention="flash_attention_2")


def test_a_model_that_ignores_the_mask_is_refused(
    tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def whole_row(self: Teacher, is_start_BT: torch.Tensor) -> torch.Tensor:
        return torch.ones(is_start_BT.shape[1], is_start_BT.shape[1]).bool().tril()[None, None]

    monkeypatch.setattr(Teacher, "_mask", whole_row)
    with pytest.raises(ValueError, match="depend on the document before it"):
        load(tiny_teacher)


def test_a_model_that_changes_its_logits_is_refused(
    tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Qwen2ForCausalLM

    forward = Qwen2ForCausalLM.forward

    def capped(self: Any, **inputs: Any) -> Any:
        output = forward(self, **inputs)
        output.logits = 5 * torch.tanh(output.logits / 5)
        return output

    monkeypatch.setattr(Qwen2ForCausalLM, "forward", capped)
    with pytest.raises(ValueError, match="its logits are not its head applied to"):
        load(tiny_teacher)


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


def test_the_tokenizer_is_that_of_tokenizer_json_and_so_is_the_exported_one(
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


def test_weights_that_are_missing_are_named(tiny_teacher: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_teacher, tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"the weights lack model\.norm\.weight"):
        load(copy)


def test_weights_that_are_no_weights_are_named(tiny_teacher: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_teacher, tmp_path / "copy"))
    (copy / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match="the teacher cannot be loaded"):
        load(copy)


def test_devices() -> None:
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
