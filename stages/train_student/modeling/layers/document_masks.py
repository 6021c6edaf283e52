"""Which positions of packed rows belong to one document and one chunk, once per batch.

In: where documents begin. Out: the masks that the layers need to keep documents apart. Called by
the student; read by its convolution, sLSTM and mLSTM.

Document 0 of a row is the one that goes on from the recurrent state (or, without a state, the
row's first). A row that begins with a marked document start has no document 0.

Shapes: B batch, T positions, C chunks, L positions of a chunk, K width of the convolution.
"""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from stages.train_student.modeling.layers.slstm import Resets


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Masks of a batch in which documents begin after the first position.

    ``index_BT``: number of each position's document within its row. ``first_BT``, ``last_BT``: that
    document's first and last position. ``continues_BT``: document 0. ``is_beyond_tap``: for
    distances 1 to K − 1, whether the input so many positions earlier is of another document,
    [B, T]. ``is_left_BK``: which of the last K − 1 inputs are not of the document that goes on.
    """

    index_BT: Tensor
    first_BT: Tensor
    last_BT: Tensor
    continues_BT: Tensor
    is_beyond_tap: tuple[Tensor, ...]
    is_left_BK: Tensor
    resets: Resets


@dataclass(frozen=True, kw_only=True)
class Chunks:
    """The positions cut into ``num`` chunks of ``length``; the last one may be padded.

    ``is_hidden_CBLL``: may position t not see position s of its chunk, because s > t or of another
    document. ``is_new_CBL``: has a position's document begun within its chunk? ``is_left_CBL``:
    has it ended there? Where no document begins after the first position, C and B are 1 in the
    first, and the others absent.
    """

    num: int
    length: int
    is_hidden_CBLL: Tensor
    is_new_CBL: Tensor | None
    is_left_CBL: Tensor | None


@dataclass(frozen=True, kw_only=True)
class DocumentLayout:
    """``documents`` is absent where no document begins after the first position."""

    num_positions: int
    device: torch.device
    documents: Documents | None
    _chunks: dict[int, Chunks] = field(default_factory=dict)

    def chunks(self, most: int) -> Chunks:
        """Chunks of at most so many positions, made for the first layer that asks for them."""
        if most not in self._chunks:
            index_BT = None if self.documents is None else self.documents.index_BT
            self._chunks[most] = _cut(index_BT, self.num_positions, most, self.device)
        return self._chunks[most]


def lay_out_documents(
    is_document_start_BT: Tensor | None, like_BT: Tensor, conv_kernel: int, has_state: bool
) -> DocumentLayout:
    """The layout of a batch shaped like ``like_BT``.

    Index 0 begins a document whether or not it is marked, unless ``has_state``: then only where it
    is marked. Marks that lie on the host spare a wait for the device, to learn whether and at which
    positions documents begin.
    """
    num_positions, device = like_BT.shape[1], like_BT.device
    whole = DocumentLayout(num_positions=num_positions, device=device, documents=None)
    if is_document_start_BT is None:
        return whole
    is_start_BT = is_document_start_BT.to(dtype=torch.bool, copy=True)
    if not has_state:
        is_start_BT[:, 0] = False
    steps: list[bool] = is_start_BT.any(0).tolist()
    if not any(steps):
        return whole
    if device.type == "cuda" and not is_start_BT.is_cuda:
        is_start_BT = is_start_BT.pin_memory()
    is_start_BT = is_start_BT.to(device, non_blocking=True)

    index_BT = is_start_BT.cumsum(1)
    history_BK = index_BT.new_zeros(len(index_BT), conv_kernel - 1)
    padded = torch.cat([history_BK, index_BT], 1)
    position_T = torch.arange(num_positions, device=device)
    next_start_BT = position_T.masked_fill(~is_start_BT, num_positions).flip(1).cummin(1).values
    last_BT = nn.functional.pad(next_start_BT.flip(1)[:, 1:], (0, 1), value=num_positions) - 1
    documents = Documents(
        index_BT=index_BT,
        first_BT=(position_T * is_start_BT).cummax(1).values,
        last_BT=last_BT,
        continues_BT=index_BT == 0,
        is_beyond_tap=tuple(
            padded[:, conv_kernel - 1 - distance :][:, :num_positions] != index_BT
            for distance in range(1, conv_kernel)
        ),
        is_left_BK=padded[:, num_positions:] != index_BT[:, -1:],
        resets=Resets(steps, is_start_BT.t()),
    )
    return replace(whole, documents=documents)


def _cut(index_BT: Tensor | None, num_positions: int, most: int, device: torch.device) -> Chunks:
    num = math.ceil(num_positions / most)
    length = math.ceil(num_positions / num)  # even chunks: the least padding
    square = torch.ones(length, length, dtype=torch.bool, device=device)
    is_future_CBLL = square.triu(1)[None, None]
    if index_BT is None:
        return Chunks(
            num=num,
            length=length,
            is_hidden_CBLL=is_future_CBLL,
            is_new_CBL=None,
            is_left_CBL=None,
        )
    position_T = torch.arange(num * length, device=device).clamp_(max=num_positions - 1)
    index_CBL = index_BT[:, position_T].view(-1, num, length).transpose(0, 1)
    last_CB1 = index_CBL[..., -1:]
    before_CB1 = torch.cat([torch.zeros_like(last_CB1[:1]), last_CB1[:-1]])
    is_other_CBLL = index_CBL[..., :, None] != index_CBL[..., None, :]
    return Chunks(
        num=num,
        length=length,
        is_hidden_CBLL=is_future_CBLL | is_other_CBLL,
        is_new_CBL=index_CBL != before_CB1,
        is_left_CBL=index_CBL != last_CB1,
    )
