"""The mLSTM, documents kept apart, optionally going on from a state.

In: queries, keys, values and gate pre-activations. Out: hidden states and, where a state was given,
the state after the last position.

The package's parallel form (Beck et al., arXiv 2405.04517, eq. 19-27 and appendix A.3) with the
stabiliser factored: with F the cumulative sum of log σ(f̃) within the document and g = ĩ − F, key s
weighs exp(F_t + g_s) at position t. Relative to the largest weight of its row that is
exp(g_s − M_t), M_t = max g_s over the visible s: F_t has cancelled, and remains only in the floor
of the normaliser, exp(−F_t − M_t). M is a common factor of numerator, normaliser and floor, and
would cancel but for the package's ε beside the normaliser; so it is differentiated like the rest.

Short sequences are one chunk, which is the parallel form; longer ones are several, through the
same code (see ``mlstm_chunkwise``).

Gates, sums and weights are float32 (or float64), cumulative sums float64. Under bfloat16 autocast
the products of queries, keys, values and of what is summed over earlier chunks are bfloat16; under
float16 they stay float32, because sums that are yet to be normalised do not fit float16's range.

Shapes: C chunks, B batch, N heads, T positions, L positions of a chunk, H width of a head.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

from stages.train_student.modeling.layers.document_masks import Chunks, DocumentLayout
from stages.train_student.modeling.layers.mlstm_chunkwise import ChunkwiseSums, Passing, Sums


class CellState(NamedTuple):
    """State after a position: matrix C and normaliser n, both scaled by exp(−m)."""

    matrix_BNHH: Tensor
    normaliser_BNH: Tensor
    max_BN: Tensor


class Decay(NamedTuple):
    """Log-weights of the positions, float64: F, g = ĩ − F, and M, the largest g a position sees."""

    forgotten_BNT: Tensor
    input_BNT: Tensor
    largest_BNT: Tensor


class ChunkDecay(NamedTuple):
    """Log-weights with F counted from the beginning of each chunk, so that they stay small.

    g − ½ log H (the scale of the keys), M, and m = F + M, the same wherever F begins;
    ``carried_CBN`` is the m of the state before a chunk, −∞ if there is none.
    """

    score_CBNL: Tensor
    largest_CBNL: Tensor
    stabiliser_CBNL: Tensor
    carried_CBN: Tensor


def empty_cell_state(batch: int, num_heads: int, width: int, like: Tensor) -> CellState:
    """The state before the first position of a document."""
    return CellState(
        like.new_zeros(batch, num_heads, width, width),
        like.new_zeros(batch, num_heads, width),
        like.new_full((batch, num_heads), -math.inf),
    )


def mlstm(
    qkv_BNTH: tuple[Tensor, Tensor, Tensor],
    gates_BNT: tuple[Tensor, Tensor],
    layout: DocumentLayout,
    state: CellState | None,
    chunk_length: int | None = None,
) -> tuple[Tensor, CellState | None]:
    """Hidden states [B, N, T, H] before the layer's norm and, given a state, the one after them.

    ``gates_BNT`` are the pre-activations of input and forget gate, at least float32. No gradient
    flows into or out of states. ``chunk_length`` is the most positions in a chunk, chosen if not
    given.
    """
    wide, num_positions, width = gates_BNT[0].dtype, *qkv_BNTH[0].shape[2:]
    chunks = layout.chunks(chunk_length or chosen_chunk_length(num_positions, width))
    dtype = torch.bfloat16 if qkv_BNTH[0].dtype == torch.bfloat16 else wide
    with torch.autocast(gates_BNT[0].device.type, enabled=False):
        decay = decay_of_chunks(decay_of_positions(gates_BNT, layout, state), width, chunks, state)
        decay = ChunkDecay(*(part.to(wide) for part in decay))
        passing = passing_between_chunks(decay, chunks, state)
        hidden, matrix, normaliser = ChunkwiseSums.apply(  # type: ignore[no-untyped-call]
            *(in_chunks(part.to(dtype), chunks) for part in qkv_BNTH),
            *decay[:3],
            chunks.is_hidden_CBLL[:, :, None],
            passing,
        )
        hidden_BNTH = hidden.movedim(0, 2).flatten(2, 3)[:, :, :num_positions]
        if state is None:
            return hidden_BNTH, None
        max_BN = decay.stabiliser_CBNL[-1, ..., -1].detach().clone()
        return hidden_BNTH, CellState(matrix, normaliser, max_BN)


def chosen_chunk_length(num_positions: int, head_width: int) -> int:
    """The most positions in a chunk: a power of two near H, or all of them where those are few.

    Per position, compute grows with L + H, and the states between chunks with H²/L. Forward and
    backward on one Zen 4 core, in one chunk ÷ in chunks of this length, by T:
        H = 192 (16 heads): 256: 0.96, 384: 1.1, 512: 1.4, 1024: 6.8, 2048: 13
        H = 32 (16 heads): 128: 1.1, 192: 1.5, 256: 1.7, 512: 4.2, 1024: 17
        H = 768 (4 heads): 512: 0.62, 768: 1.4, 1024: 3.0
    """
    length = min(256, max(64, 1 << (head_width.bit_length() - 1)))
    return num_positions if num_positions <= 2 * length else length


def decay_of_positions(
    gates_BNT: tuple[Tensor, Tensor], layout: DocumentLayout, state: CellState | None
) -> Decay:
    """Log-weights from gate pre-activations.

    F restarts in every document, so that a document's weights are the same to the last bit or two
    wherever in a row it lies.
    """
    documents = layout.documents
    log_forget = logsigmoid(gates_BNT[1]).double()
    ends = None if documents is None else (documents.first_BT[:, None], documents.last_BT[:, None])
    forgotten: Tensor = _CumulativeSum.apply(log_forget, ends)  # type: ignore[no-untyped-call]
    inputs = gates_BNT[0] - forgotten

    if documents is None:
        largest = inputs.cummax(-1).values
    else:
        # Documents in rising bands that do not overlap: the running maximum restarts with each.
        height = (inputs.max() - inputs.min()).detach() + 1.0
        band = documents.index_BT[:, None] * height
        largest = (inputs + band).cummax(-1).values - band
    if state is not None:
        of_state = state.max_BN[..., None]
        if documents is not None:
            of_state = of_state.masked_fill(~documents.continues_BT[:, None], -math.inf)
        largest = torch.maximum(largest, of_state)
    return Decay(forgotten, inputs, largest)


class _CumulativeSum(torch.autograd.Function):
    """Sum since the first position of each document, whose gradient stays in the document.

    Plain differences of cumulative sums would leave other documents a gradient of rounding errors.
    """

    @staticmethod
    def forward(ctx: Any, x_BNT: Tensor, ends: tuple[Tensor, Tensor] | None) -> Tensor:
        ctx.ends = ends
        sums = nn.functional.pad(x_BNT.cumsum(-1), (1, 0))
        if ends is None:
            return sums[..., 1:]
        return sums[..., 1:] - sums.gather(-1, ends[0].expand_as(x_BNT))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BNT: Tensor) -> tuple[Tensor, None]:
        sums = nn.functional.pad(grad_BNT.flip(-1).cumsum(-1).flip(-1), (0, 1))
        if ctx.ends is None:
            return sums[..., :-1], None
        return sums[..., :-1] - sums.gather(-1, (ctx.ends[1] + 1).expand_as(grad_BNT)), None


def decay_of_chunks(
    decay: Decay, width: int, chunks: Chunks, state: CellState | None
) -> ChunkDecay:
    """The same weights, cut into chunks. In the padding, which is at the end, no key weighs."""
    forgotten, largest = (
        in_chunks(part, chunks) for part in (decay.forgotten_BNT, decay.largest_BNT)
    )
    score = in_chunks(decay.input_BNT, chunks, padding=-math.inf)
    stabiliser = forgotten + largest
    carried = stabiliser[..., -1].detach().roll(1, 0)
    carried[0] = -math.inf if state is None else state.max_BN
    origin = forgotten[..., -1:].detach().roll(1, 0)
    origin[0] = 0.0
    if chunks.is_new_CBL is not None:
        origin = origin.masked_fill(chunks.is_new_CBL[:, :, None], 0.0)
    score = score + (origin - 0.5 * math.log(width))
    return ChunkDecay(score, largest + origin, stabiliser, carried)


@torch.no_grad()
def passing_between_chunks(decay: ChunkDecay, chunks: Chunks, state: CellState | None) -> Passing:
    seen = decay.carried_CBN[..., None] - decay.largest_CBNL
    left = decay.score_CBNL - decay.largest_CBNL[..., -1:]
    if chunks.is_new_CBL is not None and chunks.is_left_CBL is not None:
        seen = seen.masked_fill(chunks.is_new_CBL[:, :, None], -math.inf)
        left = left.masked_fill(chunks.is_left_CBL[:, :, None], -math.inf)
    seen = seen.exp()
    sums = None if state is None else Sums(state.matrix_BNHH, state.normaliser_BNH)
    return Passing(seen_CBNL=seen, left_CBNL=left.exp(), kept_CBN=seen[..., -1], state=sums)


def in_chunks(x_BNT: Tensor, chunks: Chunks, padding: float | None = None) -> Tensor:
    """[B, N, T, ...] as [C, B, N, L, ...], filled up with ``padding`` or the last position's."""
    num_missing = chunks.num * chunks.length - x_BNT.shape[2]
    if num_missing:
        last = x_BNT[:, :, -1:] if padding is None else x_BNT.new_full((1,) * x_BNT.ndim, padding)
        tail = last.expand(*x_BNT.shape[:2], num_missing, *x_BNT.shape[3:])
        x_BNT = torch.cat([x_BNT, tail], 2)
    x_BNCL = x_BNT.reshape(*x_BNT.shape[:2], chunks.num, chunks.length, *x_BNT.shape[3:])
    return x_BNCL.movedim(2, 0).contiguous()
