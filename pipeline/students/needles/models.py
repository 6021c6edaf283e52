"""Students and teachers as the needle probe reads with them: a prompt once, then several answers.

In: a loaded student, or a teacher's directory. Out: ``Reader``s. What a student keeps of the text
so far is its state, which no call changes; a teacher's cache is copied before it goes on.

P positions, V vocabulary.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from stages.model_files.file_hashes import weights_sha256
from stages.model_files.redirects import refuse_redirects
from stages.model_files.weight_files import weight_files


class Reader(Protocol):
    """A language model that goes on from what it has read."""

    def read(self, context: Any, ids: Sequence[int], num_logits: int) -> tuple[Tensor, Any]:
        """Logits [P, V] after the last ``num_logits`` of ``ids``, and the context after them.

        ``context`` is what an earlier call gave, and may be used again; None begins a text.
        """
        ...


class StudentReader:
    """Any kind of student."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self._model, self._device = model.to(device).eval(), device

    @torch.inference_mode()
    def read(self, context: Any, ids: Sequence[int], num_logits: int) -> tuple[Tensor, Any]:
        input_ids = torch.tensor([ids], device=self._device)
        output = self._model(input_ids, state=context, use_cache=True, logits_to_keep=num_logits)
        return output.logits[0], output.state


class TeacherReader:
    """A Hugging Face model with a cache of keys and values."""

    def __init__(self, model: Any, device: torch.device, vocab_size: int) -> None:
        """The first ``vocab_size`` ids are compared; others are padding of the head."""
        self._model, self._device = model.to(device).eval(), device
        self._vocab_size = vocab_size

    @torch.inference_mode()
    def read(self, context: Any, ids: Sequence[int], num_logits: int) -> tuple[Tensor, Any]:
        output = self._model(
            torch.tensor([ids], device=self._device),
            past_key_values=copy.deepcopy(context),  # which the model adds to
            use_cache=True,
            logits_to_keep=num_logits,
        )
        return output.logits[0, :, : self._vocab_size].float(), output.past_key_values


def load_teacher(directory: Path, identity: Mapping[str, str] | None) -> Any:
    """The model in ``directory`` in float32; no code of it is run.

    ``identity`` is what a student's config.json says of its teacher. Raises ValueError where there
    is no model, or another one than that.
    """
    from transformers import AutoModelForCausalLM

    if not (directory / "config.json").is_file() or not weight_files(directory):
        raise ValueError(
            f"{directory}: expected a directory with config.json and safetensors weights. Save the "
            "model with transformers' save_pretrained and give that directory."
        )
    refuse_redirects(directory / "config.json")
    expected = (identity or {}).get("weights_sha256")
    found = weights_sha256(directory)
    if expected is not None and found != expected:
        raise ValueError(
            f"{directory}: not the teacher that the student learned from: expected weights_sha256 "
            f"{expected}, found {found}. Give the directory of that teacher."
        )
    auto: Any = AutoModelForCausalLM
    return auto.from_pretrained(
        directory,
        dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )
