"""The teacher on a device: token ids become hidden states. The head is left to ``targets``.

In: rows of T ids and the places where documents start. Out: last hidden states, and their mean
over layers for the sketch. Called by ``run``. Documents in one row do not attend to each other,
and their positions count from 0. B rows, T positions, D width, V vocabulary.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from stages.cache_teacher.packing import IntArray
from stages.cache_teacher.targets import Head
from stages.cache_teacher.teacher_files import TeacherSource


class Teacher:
    """A causal language model without gradients. Loading it is what costs memory and time."""

    def __init__(self, source: TeacherSource, device: torch.device) -> None:
        """Raises ValueError if weights are missing, or documents or logits would come out wrong."""
        self.source, self.device = source, device
        if source.spec.attention == "flash_attention_2" and (
            device.type != "cuda" or source.spec.dtype == "float32"
        ):
            raise ValueError(
                "attention: flash_attention_2 needs a GPU and half precision; use sdpa"
            )
        model = _load_model(source).to(device)
        self._model = model
        self.embedding = model.get_input_embeddings().weight
        head = model.get_output_embeddings()
        if getattr(head, "bias", None) is not None:
            raise ValueError("the teacher's head has a bias, which a cache does not hold")
        self.head_weight = head.weight
        if len(self.head_weight) != source.spec.head_rows:
            raise ValueError(
                f"the teacher's head has {len(self.head_weight)} rows, its config.json says "
                f"vocab_size {source.spec.head_rows}"
            )
        self.head = Head(self.head_weight, source.spec.vocab_size)
        self._refuse_leaks()
        self._refuse_other_logits()

    @torch.inference_mode()
    def forward(
        self, input_ids: IntArray, document_starts: Sequence[IntArray], *, with_mean: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Last hidden states [B, T, D], and on request their float32 mean over layers [B, T, D].

        The last hidden state is what the head is applied to. The mean runs over the output of
        every layer, the last one after the final norm; the embedding's output is no layer.
        """
        ids_BT = torch.from_numpy(input_ids.astype(np.int64)).to(self.device)
        is_start_BT = _starts_of(document_starts, ids_BT.shape).to(self.device)
        positions_BT = _positions(is_start_BT)
        if self.source.spec.attention == "flash_attention_2":
            # One long row whose positions restart: the only packing that kernel understands.
            inputs = {"input_ids": ids_BT.view(1, -1), "position_ids": positions_BT.view(1, -1)}
            mask = None
        else:
            inputs = {"input_ids": ids_BT, "position_ids": positions_BT}
            mask = self._mask(is_start_BT)
        output = self._model.base_model(
            **inputs, attention_mask=mask, use_cache=False, output_hidden_states=with_mean
        )
        shape = (*ids_BT.shape, -1)
        last_BTD = output.last_hidden_state.view(shape)
        return last_BTD, _mean(output.hidden_states[1:]).view(shape) if with_mean else None

    def export(self, directory: Path) -> None:
        """Write what a student needs: config, tokenizer, embedding, and the head if untied."""
        from safetensors.torch import save_file

        source = self.source
        shutil.copyfile(source.directory / "config.json", directory / "config.json")
        # Not copied: transformers may read the teacher's files as a tokenizer class of its own
        # choice; what is saved is what made the ids, whoever reads it.
        source.tokenizer.save_pretrained(directory)
        tied = self.head_weight.data_ptr() == self.embedding.data_ptr()
        tensors = (
            {"embedding": self.embedding}
            if tied
            else {
                "embedding": self.embedding,
                "head": self.head_weight,
            }
        )
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            directory / "embedding.safetensors",
        )
        facts = {
            "tie_word_embeddings": tied,
            "hidden_size": source.spec.hidden_size,
            "vocab_size": source.spec.vocab_size,
            "head_rows": source.spec.head_rows,
            "eos_token_id": source.spec.eos_token_id,
        }
        (directory / "teacher.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")

    def _mask(self, is_start_BT: torch.Tensor) -> torch.Tensor:
        """[B, 1, T, T], 4-D so that transformers takes it as it is: same document, not later."""
        document_BT = is_start_BT.cumsum(1)
        allowed_BTT = (document_BT[:, :, None] == document_BT[:, None, :]).tril()
        if self.source.spec.attention != "eager":
            return allowed_BTT[:, None]
        # The eager code adds the mask to the scores; a boolean one would add 0 and 1.
        dtype = self._model.dtype
        added_BTT = torch.zeros(allowed_BTT.shape, dtype=dtype, device=self.device)
        return added_BTT.masked_fill_(~allowed_BTT, torch.finfo(dtype).min)[:, None]

    def _probe(self, first: int) -> torch.Tensor:
        """Hidden states of two documents of four tokens; the first one depends on ``first``."""
        ids = np.arange(8, dtype=np.int32)[None] % self.source.spec.vocab_size
        ids[0, :4] = (ids[0, :4] + first) % self.source.spec.vocab_size
        hidden_BTD, _ = self.forward(ids, [np.array([4], np.int32)], with_mean=False)
        return hidden_BTD

    def _refuse_leaks(self) -> None:
        """Some architectures ignore the mask without a word; then packed documents mix."""
        one_TD, other_TD = self._probe(1)[0, 4:], self._probe(7)[0, 4:]
        if not _agree(one_TD, other_TD, 4 * torch.finfo(one_TD.dtype).eps):
            raise ValueError(
                f"teacher {self._model.config.model_type!r}: a document's hidden states depend on "
                "the document before it in the row. Use a teacher with ordinary attention."
            )

    def _refuse_other_logits(self) -> None:
        """Some models change their logits after the head; then hidden @ head is not the teacher."""
        spec = self.source.spec
        ids_BT = torch.arange(8, device=self.device)[None] % spec.vocab_size
        with torch.inference_mode():
            theirs_TV = self._model(input_ids=ids_BT, use_cache=False).logits[
                0, :, : spec.vocab_size
            ]
            hidden_BTD, _ = self.forward(ids_BT.cpu().numpy(), [np.empty(0, int)], with_mean=False)
            rounding = 1e-3 if spec.dtype == "float32" else 5e-2
            if not _agree(self.head.logits(hidden_BTD[0]), theirs_TV, rounding):
                raise ValueError(
                    f"teacher {self._model.config.model_type!r}: its logits are not its head "
                    "applied to its last hidden state. Use a teacher with a plain head."
                )


def _load_model(source: TeacherSource) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        with _no_progress_bar():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source.directory,
                dtype=getattr(torch, source.spec.dtype),
                attn_implementation=source.spec.attention,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (ImportError, OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(f"{source.directory}: the teacher cannot be loaded: {error}") from error
    model, info = loaded
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:5])
        raise ValueError(f"{source.directory}: the weights lack {missing}; the model is not whole")
    return model.eval()


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Only the command line prints; transformers would show a bar of its own while loading."""
    from transformers.utils import logging

    library: Any = logging
    shown = library.is_progress_bar_enabled()
    library.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            library.enable_progress_bar()


def _starts_of(document_starts: Sequence[IntArray], shape: torch.Size) -> torch.Tensor:
    """bool [B, T], true where a document begins; index T belongs to the last label alone."""
    is_start_BT = np.zeros((shape[0], shape[1] + 1), dtype=np.bool_)
    is_start_BT[:, 0] = True
    for row, starts in enumerate(document_starts):
        is_start_BT[row, starts] = True
    return torch.from_numpy(is_start_BT[:, :-1])


def _positions(is_start_BT: torch.Tensor) -> torch.Tensor:
    """Position ids that count from 0 in every document, int64 [B, T]."""
    index_T = torch.arange(is_start_BT.shape[1], device=is_start_BT.device)
    last_start_BT = torch.where(is_start_BT, index_T, 0).cummax(1).values
    return index_T - last_start_BT


def _mean(hidden_states: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean over layers in float32, one layer at a time."""
    total = hidden_states[0].float()
    for hidden in hidden_states[1:]:
        total = total + hidden.float()
    return total / len(hidden_states)


def _agree(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> bool:
    """Equal but for rounding; what is not finite is for ``targets`` to report."""
    ours, theirs = ours.float(), theirs.float()
    if not (torch.isfinite(ours).all() and torch.isfinite(theirs).all()):
        return True
    return bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max())
