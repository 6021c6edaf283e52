"""The mLSTM as a weighted average of values, documents kept apart, optionally from a state.

In: positive features of queries and keys, values and gate pre-activations. Out: hidden states and,
where a state was given, the state after the last position.

    S_t = f_t S_{t−1} + i_t φ(k_t) ⊗ v_t,   z_t = f_t z_{t−1} + i_t φ(k_t),
    h_t = φ(q_t) S_t / (φ(q_t)·z_t),        i = exp(ĩ), f = σ(f̃)

(arXiv 2603.15590; the mLSTM of arXiv 2405.04517 with neither floor nor ε beside its normaliser).
So h_t is an average of the values with weights exp(F_t + g_s) φ(q_t)·φ(k_s), F the cumulative sum
of log f within the document and g = ĩ − F. F_t cancels in it, as does the running maximum M_t of g
that keeps the exponentials in range. Keys, values and gates belong to a head, and so S and z; G
queries share them.

Gates, sums and weights are float32 (or float64), cumulative sums float64. Where the values are
bfloat16, so are the factors of products; a float16 value is computed with as float32 (see
``mlstm``).

Shapes: B batch, N heads of keys and values, G queries that share a head, T positions, F features,
H width of a head; C chunks, L positions of a chunk.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from stages.train_student.modeling.layers.document_masks import DocumentLayout
from stages.train_student.modeling.layers.document_scans import document_maxima, document_sums
from stages.train_student.modeling.layers.mlstm import (
    CellState,
    ChunkDecay,
    Decay,
    chosen_chunk_length,
    decay_of_chunks,
    in_chunks,
    passing_between_chunks,
)
from stages.train_student.modeling.layers.normalized_mlstm_chunks import (
    ChunkwiseAverages,
    inverse_where_positive,
)

# Input gates below this are as good as shut; −∞ itself would make differences of no number.
_SHUT = -1e30


class MemoryState(NamedTuple):
    """State after a position: matrix S and normaliser z, both scaled by exp(−m), and m.

    m is float64: a forget gate near 1 changes it alone, by less than a step of float32.
    """

    matrix_BNFH: Tensor
    normaliser_BNF: Tensor
    max_BN: Tensor

    def rows(self, indices: Tensor) -> "MemoryState":
        """The state of the batch rows ``indices``, in that order."""
        return MemoryState(*(part.index_select(0, indices) for part in self))


def empty_memory_state(
    batch: int, num_heads: int, num_features: int, width: int, like: Tensor
) -> MemoryState:
    """The state before the first position of a document; ``like`` at least float32."""
    return MemoryState(
        like.new_zeros(batch, num_heads, num_features, width),
        like.new_zeros(batch, num_heads, num_features),
        like.new_full((batch, num_heads), -math.inf, dtype=torch.float64),
    )


def normalized_mlstm(
    features: tuple[Tensor, Tensor],
    value_BNTH: Tensor,
    gates_BNT: tuple[Tensor, Tensor],
    layout: DocumentLayout,
    state: MemoryState | None,
    chunk_length: int | None = None,
) -> tuple[Tensor, MemoryState | None]:
    """Hidden states [B, N, G, T, H], at least float32, and, given a state, the one after them.

    ``features`` are φ(q) [B, N, G, T, F] and φ(k) [B, N, T, F], none negative; ``gates_BNT`` the
    pre-activations of input and forget gate. No gradient flows into or out of states.
    ``chunk_length`` is the most positions in a chunk, chosen if not given.
    """
    if state is not None and layout.num_positions == 1 and layout.documents is None:
        return _step(features, value_BNTH, gates_BNT, state)
    query_BNGTF, key_BNTF = features
    group, num_positions, width = query_BNGTF.shape[2], *value_BNTH.shape[2:]
    wide = torch.promote_types(gates_BNT[0].dtype, torch.float32)
    dtype = torch.bfloat16 if value_BNTH.dtype == torch.bfloat16 else wide
    chunks = layout.chunks(chunk_length or chosen_chunk_length(num_positions, width))
    with torch.autocast(value_BNTH.device.type, enabled=False):
        gates_BNT = gates_BNT[0].to(wide), gates_BNT[1].to(wide)
        cell = None if state is None else CellState(*state)
        exact = decay_of_chunks(_decay_of_documents(gates_BNT, layout, cell), 1, chunks, cell)
        decay = ChunkDecay(*(part.to(wide) for part in exact))
        passing = passing_between_chunks(decay, chunks, cell)
        seen_of_rows = passing.seen_CBNL.repeat_interleave(group, -1)
        averages, matrix, normaliser = ChunkwiseAverages.apply(  # type: ignore[no-untyped-call]
            in_chunks(query_BNGTF.transpose(2, 3).to(dtype), chunks).flatten(3, 4),
            in_chunks(key_BNTF.to(dtype), chunks),
            in_chunks(value_BNTH.to(dtype), chunks),
            decay.score_CBNL,
            decay.largest_CBNL,
            chunks.is_hidden_CBLL[:, :, None],
            replace(passing, seen_CBNL=seen_of_rows),
        )
        hidden_BNTGH = averages.unflatten(3, (-1, group)).movedim(0, 2).flatten(2, 3)
        hidden_BNGTH = hidden_BNTGH[:, :, :num_positions].transpose(2, 3)
        if state is None:
            return hidden_BNGTH, None
        max_BN = exact.stabiliser_CBNL[-1, ..., -1].detach().clone()
        return hidden_BNGTH, MemoryState(matrix, normaliser, max_BN)


def _decay_of_documents(
    gates_BNT: tuple[Tensor, Tensor], layout: DocumentLayout, state: CellState | None
) -> Decay:
    """Log-weights from gate pre-activations, of no document with a bit of another.

    M is a constant, as it cancels.
    """
    documents = layout.documents
    forgotten = document_sums(logsigmoid(gates_BNT[1]).double(), documents)
    inputs = gates_BNT[0].clamp(min=_SHUT) - forgotten
    largest = document_maxima(inputs, documents)
    if state is not None:
        of_state = state.max_BN[..., None]
        if documents is not None:
            of_state = of_state.masked_fill(~documents.continues_BT[:, None], -math.inf)
        largest = torch.maximum(largest, of_state)
    return Decay(forgotten, inputs, largest)


def _step(
    features: tuple[Tensor, Tensor],
    value_BNTH: Tensor,
    gates_BNT: tuple[Tensor, Tensor],
    state: MemoryState,
) -> tuple[Tensor, MemoryState]:
    """The recurrence itself, for a single position of a document that goes on.

    Generation waits for operations on little data, of which this has a fifth of what chunks need.
    """
    wide = torch.promote_types(gates_BNT[0].dtype, torch.float32)
    with torch.autocast(value_BNTH.device.type, enabled=False):
        opened_BN, log_forget_BN = gates_BNT[0][..., 0], logsigmoid(gates_BNT[1][..., 0].to(wide))
        query_BNGF, key_BNF = (part.squeeze(-2).to(wide) for part in features)
        matrix_BNFH, normaliser_BNF, before_BN = (part.detach() for part in state)
        carried_BN = before_BN + log_forget_BN
        opened_BN = opened_BN.double().clamp(min=_SHUT)
        max_BN = torch.maximum(carried_BN, opened_BN).detach()
        kept_BN1 = (carried_BN - max_BN).exp().to(wide)[..., None]
        key_BNF = key_BNF * (opened_BN - max_BN).exp().to(wide)[..., None]
        normaliser_BNF = torch.addcmul(key_BNF, normaliser_BNF, kept_BN1)
        matrix_BNFH = matrix_BNFH * kept_BN1[..., None]
        matrix_BNFH = torch.addcmul(matrix_BNFH, key_BNF[..., None], value_BNTH.to(wide))
        divisor_BNG1 = query_BNGF @ normaliser_BNF[..., None]
        inverse_BNG1 = inverse_where_positive(divisor_BNG1)
        hidden_BNGH = (query_BNGF @ matrix_BNFH) * inverse_BNG1
    after = MemoryState(matrix_BNFH.detach(), normaliser_BNF.detach(), max_BN)
    return hidden_BNGH.unsqueeze(3), after
