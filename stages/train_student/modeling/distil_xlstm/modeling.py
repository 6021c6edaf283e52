"""The student: xLSTM blocks between frozen copies of the teacher's embedding and head.

In: token ids and where documents begin. Out: hidden states for the loss, or logits for everyone
else. A Hugging Face model: a new one is made by ``build_student``, a stored one loaded by
``from_pretrained``. The stack, the embedding and the head may lie on different devices
(``device_map``); the stack is never split.

Documents packed into one row do not see each other. Generation carries a state of constant size.
Parameters are named as in ``xlstm.xLSTMLMModel``, and move to and from it by ``load_state_dict``.

Shapes: B batch, T positions, V vocabulary, R rows of the head (padding included), D width.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils.generic import ModelOutput

from stages.train_student.modeling.distil_xlstm.configuration import DistilXLSTMConfig
from stages.train_student.modeling.distil_xlstm.directory_code import AUTO_MAP, write_directory_code
from stages.train_student.modeling.distil_xlstm.package_stack import make_stack
from stages.train_student.modeling.distil_xlstm.stack import (
    StackState,
    empty_stack_state,
    stack_forward,
)
from stages.train_student.modeling.layers.document_masks import DocumentLayout, lay_out_documents

_HEAD_CHUNK_ROWS = 8192  # rows of a half-precision head that are held in float32 at once


@dataclass
class DistilXLSTMOutput(ModelOutput):
    """Mean cross-entropy (where labels were given), logits [B, T, V], and the recurrent state."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    state: StackState | None = None


class DistilXLSTMForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """The student as a causal language model."""

    config_class = DistilXLSTMConfig
    config: DistilXLSTMConfig
    token_embedding: nn.Embedding
    lm_head: nn.Linear
    base_model_prefix = "xlstm_block_stack"
    # Masks and states lie where the blocks do, so that is one device.
    _no_split_modules = ["xLSTMBlockStack"]  # noqa: RUF012 (their class attribute)
    _is_stateful = True  # generation cannot go back a token
    _tied_weights_keys = {"lm_head.weight": "token_embedding.weight"}  # noqa: RUF012 (their class attribute)

    def __init__(
        self, config: DistilXLSTMConfig, embedding: Tensor | None = None, head: Tensor | None = None
    ) -> None:
        super().__init__(config)
        # The stack comes first: the model's dtype is that of its first parameter, and its random
        # weights shall not depend on the size of the vocabulary.
        self.xlstm_block_stack = make_stack(config.stack_settings())
        rows, width = config.head_rows, config.hidden_size
        dtype = getattr(torch, config.embedding_dtype)
        if embedding is None:
            embedding = nn.Embedding(rows, width, dtype=dtype).weight.detach()
        self.token_embedding = nn.Embedding(rows, width, device="meta")
        self.token_embedding.weight = nn.Parameter(embedding, requires_grad=False)
        if head is None:
            head = embedding if config.tie_word_embeddings else torch.randn_like(embedding)
        if config.train_head:
            head = head.float()
        self.lm_head = nn.Linear(width, rows, bias=False, device="meta")
        self.lm_head.weight = nn.Parameter(head, requires_grad=config.train_head)
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in Hugging Face, but refuses a directory that lacks weights, and offloading."""
        with_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        if info["missing_keys"]:
            raise ValueError(
                f"{args[0] if args else 'model'}: {len(info['missing_keys'])} weights are missing, "
                f"{min(info['missing_keys'])!r} among them. Copy the whole directory again, or "
                "export the student anew from a checkpoint."
            )
        offloaded = [name for name, weight in model.named_parameters() if weight.is_meta]
        if offloaded:
            raise ValueError(
                f"device_map: {offloaded[0]!r} would be fetched for each use, which this model "
                "cannot do. Give it a map onto devices that hold it, such as device_map='cpu'."
            )
        model._freeze()
        return (model, info) if with_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in Hugging Face, with the code of this class beside the weights."""
        if kwargs.get("push_to_hub"):
            raise ValueError("save_pretrained: upload with `model.push_to_hub(…)` instead")
        self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            write_directory_code(Path(save_directory))

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModelForCausalLM") -> None:
        """Nothing: or saving would copy this file, alone, into the model's directory."""

    def hidden_states(self, input_ids: Tensor, is_document_start: Tensor | None = None) -> Tensor:
        """The stack's output after its final norm, [B, T, D]; what the loss works on.

        ``is_document_start`` is bool [B, T], True where a document begins; index 0 always does.
        """
        layout = self._lay_out(input_ids, is_document_start, has_state=False)
        hidden, _ = self.run_stack(input_ids, layout, None)
        return hidden

    def run_stack(
        self, input_ids: Tensor, layout: DocumentLayout, state: StackState | None
    ) -> tuple[Tensor, StackState | None]:
        """``hidden_states`` of a batch that is laid out, and the state after it.

        What reads the weights of a training step, so that sharding has one method to hook into.
        """
        norm: Any = self.xlstm_block_stack.get_submodule("post_blocks_norm")
        x = self.token_embedding(input_ids).to(norm.weight)
        return stack_forward(self.xlstm_block_stack, x, layout, state)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        is_document_start: Tensor | None = None,
        labels: Tensor | None = None,
        state: StackState | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> Any:
        """Logits over the ids that take part in the softmax, in float32.

        ``labels`` are shifted here, as in Hugging Face: pass the input ids. Labels of −100 and
        labels at which a document begins are not scored. ``state`` (returned with ``use_cache``)
        goes on where an earlier call ended; a document start at index 0 then has to be marked.
        ``attention_mask`` may hold padding; a document begins after it. It may also cover what came
        before ``state``. 0 for ``logits_to_keep`` means all positions.
        """
        return_dict = kwargs.pop("return_dict", True)
        if attention_mask is not None:
            if use_cache and not bool(attention_mask[:, -1].all()):
                raise ValueError(
                    "attention_mask: the last position of a row is padding, which would end up in "
                    "the recurrent state. Pad on the left (tokenizer.padding_side = 'left')."
                )
            after_padding = _starts_after_padding(attention_mask)
            if state is not None:
                after_padding = after_padding[:, -input_ids.shape[1] :]
            is_document_start = (
                after_padding if is_document_start is None else after_padding | is_document_start
            )
        if use_cache and state is None:
            state = empty_stack_state(self.xlstm_block_stack, len(input_ids))
        layout = self._lay_out(input_ids, is_document_start, has_state=state is not None)
        hidden, state = self.run_stack(input_ids, layout, state)
        logits = self._logits(hidden[:, -logits_to_keep:])
        loss = None if labels is None else _next_token_loss(logits, labels, is_document_start)
        output = DistilXLSTMOutput(loss=loss, logits=logits, state=state)
        return output if return_dict else output.to_tuple()

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Padding and document starts belong to the prompt alone."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        if inputs.get("state") is not None:
            inputs["attention_mask"] = inputs["is_document_start"] = None
        return inputs

    @property
    def blocks(self) -> nn.ModuleList:
        """The xLSTM blocks, first to last."""
        blocks: nn.ModuleList = self.xlstm_block_stack.blocks  # type: ignore[assignment]
        return blocks

    def get_input_embeddings(self) -> nn.Embedding:
        return self.token_embedding

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def _lay_out(
        self, input_ids: Tensor, is_document_start: Tensor | None, *, has_state: bool
    ) -> DocumentLayout:
        if is_document_start is not None and is_document_start.shape != input_ids.shape:
            raise ValueError(
                f"is_document_start: expected the shape of input_ids, {tuple(input_ids.shape)}, "
                f"found {tuple(is_document_start.shape)}"
            )
        norm: Any = self.xlstm_block_stack.get_submodule("post_blocks_norm")
        like_BT = input_ids.to(norm.weight.device)
        return lay_out_documents(
            is_document_start, like_BT, self.config.conv_kernel, has_state=has_state
        )

    def _logits(self, hidden: Tensor) -> Tensor:
        """The head in float32, as bfloat16 would round logits near 19 by up to 0.06."""
        head = self.lm_head.weight[: self.config.vocab_size]
        hidden = hidden.to(head.device)
        dtype = torch.promote_types(torch.promote_types(hidden.dtype, head.dtype), torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            if head.dtype == dtype:
                return nn.functional.linear(hidden.to(dtype), head)
            hidden = hidden.to(dtype)
            chunks = torch.split(head, _HEAD_CHUNK_ROWS)
            return torch.cat([nn.functional.linear(hidden, c.to(dtype)) for c in chunks], dim=-1)

    def _freeze(self) -> None:
        self.token_embedding.requires_grad_(False)
        self.lm_head.requires_grad_(self.config.train_head)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: every module has initialised itself when it was made."""

    def _reorder_cache(self, state: StackState, beam_indices: Tensor) -> StackState:
        """Beam search: each beam goes on from the state of the one it came from."""
        return tuple(layer.rows(beam_indices) for layer in state)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the state is made in `forward`


def _starts_after_padding(attention_mask: Tensor) -> Tensor:
    is_token = attention_mask.bool()
    before = torch.cat([torch.ones_like(is_token[:, :1]), is_token[:, :-1]], dim=1)
    return is_token & ~before


def _next_token_loss(logits: Tensor, labels: Tensor, is_document_start: Tensor | None) -> Tensor:
    labels = labels[:, 1:].to(logits.device)
    if is_document_start is not None:
        labels = labels.masked_fill(is_document_start[:, 1:].bool().to(logits.device), -100)
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten())
