"""The models that are compared: students of both kinds and a Transformer, all weights random.

In: a mixer's name and sizes. Out: a causal language model, everything in it trained. Within each
family all but the mixer is equal. A Llama's layers (rotary positions, a feed-forward of 8/3 of the
width) hold full attention, window and sinks, mLSTM, or both; the package's xLSTM blocks (a causal
convolution before each cell) hold sLSTM, mLSTM, or one after the other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.recall.task import LEAD_IN
from stages.train_student.modeling.distil_xlstm import build as distil
from stages.train_student.modeling.distil_xlstm.settings import DistilXLSTMSettings
from stages.train_student.modeling.hybrid_xlstm import build as hybrid
from stages.train_student.modeling.hybrid_xlstm.settings import HybridXLSTMSettings

HYBRID_PATTERNS: Mapping[str, str] = {
    "hybrid": "hybrid",
    "mlstm-llama": "mlstm",
    "window": "window",
}
"""Mixers in a Llama's layers, by the student's ``pattern``."""
_SLSTM_BLOCKS = {"mlstm": slice(0), "alternating": slice(0, None, 2), "slstm": slice(None)}
XLSTM_MIXERS = tuple(_SLSTM_BLOCKS)
MIXERS = ("attention", *HYBRID_PATTERNS, *XLSTM_MIXERS)
LABELS: Mapping[str, str] = {
    "attention": "full attention",
    "hybrid": "mLSTM, window and sinks",
    "mlstm-llama": "mLSTM in place of attention",
    "window": "window and sinks",
    "mlstm": "xLSTM blocks, mLSTM",
    "alternating": "xLSTM blocks, sLSTM and mLSTM",
    "slstm": "xLSTM blocks, sLSTM",
}
CONV_KERNEL = 3
"""Positions that the convolution of the embedding sees."""


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """What all models have in common."""

    vocabulary: int
    width: int = 64
    layers: int = 2
    heads: int = 2
    window: int = 4
    """Positions that a query of the sliding window sees, its own included."""

    @property
    def reach(self) -> int:
        """Positions back that windows of all layers reach together, and the convolution."""
        return self.layers * (self.window - 1) + CONV_KERNEL - 1


def make_model(mixer: str, sizes: ModelSizes, seed: int) -> Any:
    """A model of random weights, a function of ``seed`` alone; all of them are trained."""
    if mixer in XLSTM_MIXERS:
        model: Any = _xlstm(mixer, sizes, seed)
    else:
        model = _llama(sizes, seed)
        if mixer != "attention":
            model = _in_layers_of(model, HYBRID_PATTERNS[mixer], sizes, seed)
    generator = torch.Generator().manual_seed(2**32 + seed)  # other numbers than the weights'
    embedding = ConvolvedEmbedding(model.get_input_embeddings(), CONV_KERNEL, generator)
    if mixer in XLSTM_MIXERS:
        model.token_embedding = embedding
    else:
        model.model.embed_tokens = embedding
    return model.requires_grad_(True).train()


class ConvolvedEmbedding(nn.Module):
    """An embedding, and a causal convolution of each of its coordinates added to it."""

    def __init__(self, embedding: nn.Embedding, kernel: int, generator: torch.Generator) -> None:
        super().__init__()
        self.embedding, self.kernel = embedding, kernel
        drawn = torch.randn(embedding.embedding_dim, 1, kernel, generator=generator)
        self.weight = nn.Parameter(drawn * kernel**-0.5)

    def forward(self, input_ids: Tensor) -> Tensor:
        x_BDT = self.embedding(input_ids).transpose(1, 2)
        padded = nn.functional.pad(x_BDT, (self.kernel - 1, 0))
        mixed = nn.functional.conv1d(padded, self.weight, groups=len(self.weight))
        out_BTD: Tensor = (x_BDT + mixed).transpose(1, 2)
        return out_BTD


def _xlstm(mixer: str, sizes: ModelSizes, seed: int) -> Any:
    settings = DistilXLSTMSettings(
        num_blocks=sizes.layers,
        slstm_at=tuple(range(sizes.layers)[_SLSTM_BLOCKS[mixer]]),
        num_heads=sizes.heads,
        train_head=True,
    )
    scale = torch.Generator().manual_seed(seed)
    embedding = sizes.width**-0.5 * torch.randn(sizes.vocabulary, sizes.width, generator=scale)
    return distil.build_student(
        settings,
        hidden_size=sizes.width,
        vocab_size=sizes.vocabulary,
        head_rows=sizes.vocabulary,
        eos_token_id=None,
        embedding=embedding,
        head=None,
        seed=seed,
    )


def _llama(sizes: ModelSizes, seed: int) -> Any:
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        intermediate_size=sizes.width * 8 // 3,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        tie_word_embeddings=False,
        initializer_range=sizes.width**-0.5,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def _in_layers_of(llama: Any, pattern: str, sizes: ModelSizes, seed: int) -> Any:
    settings = HybridXLSTMSettings(
        pattern=pattern, window=sizes.window, num_sinks=LEAD_IN, trained="all"
    )
    return hybrid.build_student(
        settings,
        teacher_config=llama.config.to_dict(),
        weights=llama.state_dict().items(),
        vocab_size=sizes.vocabulary,
        eos_token_id=None,
        seed=seed,
    )
