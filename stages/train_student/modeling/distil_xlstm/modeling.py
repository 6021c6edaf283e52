"""The student: xLSTM blocks between frozen copies of the teacher's embedding and head.

In: token ids and where documents begin. Out: hidden states for the loss, or logits for everyone
else. A Hugging Face model: a new one is made by ``build_student``, a stored one loaded by
``from_pretrained``. The stack, the embedding and the head may lie on different devices
(``device_map``); the stack is never split.

Documents packed into one row do not see each other. Generation carries a state of constant size.
Parameters are named as in ``xlstm.xLSTMLMModel``, and move to and from it by ``load_state_dict``.

Shapes: B batch, T positions, V vocabulary, R rows of the head (padding included), D width.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.train_student.modeling.causal_student import CausalStudent
from stages.train_student.modeling.distil_xlstm.configuration import DistilXLSTMConfig
from stages.train_student.modeling.distil_xlstm.directory_code import AUTO_MAP, write_directory_code
from stages.train_student.modeling.distil_xlstm.package_stack import make_stack
from stages.train_student.modeling.distil_xlstm.stack import (
    StackState,
    empty_stack_state,
    stack_forward,
)
from stages.train_student.modeling.layers.document_masks import DocumentLayout


class DistilXLSTMForCausalLM(CausalStudent):
    """The student as a causal language model."""

    config_class = DistilXLSTMConfig
    config: DistilXLSTMConfig
    token_embedding: nn.Embedding
    auto_map = AUTO_MAP
    base_model_prefix = "xlstm_block_stack"
    # Masks and states lie where the blocks do, so that is one device.
    _no_split_modules = ["xLSTMBlockStack"]  # noqa: RUF012 (their class attribute)
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

    @staticmethod
    def write_directory_code(directory: Path) -> None:
        write_directory_code(directory)

    @property
    def stack_device(self) -> torch.device:
        device: torch.device = self._norm.weight.device
        return device

    @property
    def conv_kernel(self) -> int:
        return self.config.conv_kernel

    def empty_state(self, batch: int) -> StackState:
        return empty_stack_state(self.xlstm_block_stack, batch)

    def freeze(self) -> None:
        self.token_embedding.requires_grad_(False)
        self.lm_head.requires_grad_(self.config.train_head)

    def run_stack(
        self, input_ids: Tensor, layout: DocumentLayout, state: StackState | None
    ) -> tuple[Tensor, StackState | None]:
        x = self.token_embedding(input_ids).to(self._norm.weight)
        return stack_forward(self.xlstm_block_stack, x, layout, state)

    @property
    def blocks(self) -> nn.ModuleList:
        """The xLSTM blocks, first to last."""
        blocks: nn.ModuleList = self.xlstm_block_stack.blocks  # type: ignore[assignment]
        return blocks

    def get_input_embeddings(self) -> nn.Embedding:
        return self.token_embedding

    @property
    def _norm(self) -> Any:
        return self.xlstm_block_stack.get_submodule("post_blocks_norm")

    def _reorder_cache(self, state: StackState, beam_indices: Tensor) -> StackState:
        return tuple(layer.rows(beam_indices) for layer in state)
