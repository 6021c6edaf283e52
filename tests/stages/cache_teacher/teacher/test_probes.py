"""The start-up check finds kernels and models that are wrong, and says which setting to change."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stages.cache_teacher.teacher import attention
from stages.cache_teacher.teacher.teacher import Teacher
from stages.cache_teacher.teacher.teacher_files import resolve_teacher
from tests.support.tiny import tiny_cache_config


def load(directory: Path, **changes: Any) -> Teacher:
    source = resolve_teacher(tiny_cache_config(directory, "unused", **changes))
    return Teacher(source, torch.device("cpu"))


def test_a_model_that_ignores_the_mask_is_refused(
    tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never_restarting(is_start_BT: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.ones(is_start_BT.shape[1], is_start_BT.shape[1]).bool().tril()[None, None]

    monkeypatch.setattr(attention, "_mask", never_restarting)
    with pytest.raises(
        ValueError, match="'sdpa' a document's hidden states depend on the document b"
    ):
        load(tiny_teacher)


def test_positions_that_do_not_restart_at_documents_are_detected(
    untied_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative positions forgive a shift, so they are stretched here."""
    positions = attention._positions
    monkeypatch.setattr(attention, "_positions", lambda starts: 2 * positions(starts))
    with pytest.raises(ValueError, match="its logits are not its head applied"):
        load(untied_teacher)

    def stretched_in_later_documents(is_start_BT: Any) -> Any:
        index_T = positions(is_start_BT)
        is_later_BT = is_start_BT.cumsum(1) > 1
        return index_T * (1 + is_later_BT)

    monkeypatch.setattr(attention, "_positions", stretched_in_later_documents)
    with pytest.raises(ValueError, match="gives different logits after another one than alone"):
        load(untied_teacher)


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
@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("leak", 'depend on the document before .* Set attention to "sdpa" or "eager"'),
        ("scale", "its logits are not its head applied"),
        ("fail", 'RuntimeError: no kernel image.* Set attention to "sdpa" or "eager"'),
    ],
)
def test_a_faulty_attention_kernel_is_detected(
    tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch, fault: str, problem: str, dtype: str
) -> None:
    by_document = attention._by_document

    def kernel(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        ends: torch.Tensor,
        longest: int,
        scaling: float,
    ) -> torch.Tensor:
        if fault == "fail":
            raise RuntimeError("no kernel image is available")
        if fault == "leak":
            ends = ends[[0, -1]]
        if fault == "scale":
            scaling = 2 * scaling
        return by_document(query, key, value, ends, longest, scaling)

    monkeypatch.setattr(attention, "has_kernel", lambda query: True)
    monkeypatch.setattr(attention, "_by_kernel", kernel)
    with pytest.raises(ValueError, match=f"(?s){problem}"):
        load(tiny_teacher, attention="varlen", teacher_dtype=dtype)


def test_running_out_of_memory_is_not_blamed_on_the_model(
    tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kernel(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(attention, "_by_document", kernel)
    with pytest.raises(torch.OutOfMemoryError):
        load(tiny_teacher, attention="varlen")


def test_the_attention_that_was_probed_is_the_one_that_runs(tiny_teacher: Path) -> None:
    """The probe takes another one for comparison, and puts it back."""
    teacher = load(tiny_teacher, attention="varlen")
    assert teacher._model.config._attn_implementation == "varlen"
