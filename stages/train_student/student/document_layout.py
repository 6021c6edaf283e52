"""Which positions of packed rows belong to one document, worked out once per batch.

In: where documents begin. Out: the masks that the layers need to keep documents apart. Called by
the student; read by its convolution, sLSTM and mLSTM.

Document 0 of a row is the one that goes on from the recurrent state (or, without a state, the
row's first). A row that begins with a marked document start has no document 0.

Shapes: B batch, T positions, K width of the convolution.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.train_student.student.slstm_scan import Resets


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Masks of a batch in which documents begin after the first position.

    ``index_BT``: number of each position's document within its row. ``first_BT``: index of the
    first position of that document. ``continues_BT``: document 0. ``is_beyond_tap``: for distances
    1 to K − 1, whether the input so many positions earlier is of another document, [B, T].
    ``is_left_BK``: which of the last K − 1 inputs are not of the document that goes on.
    """

    index_BT: Tensor
    first_BT: Tensor
    continues_BT: Tensor
    is_beyond_tap: tuple[Tensor, ...]
    is_left_BK: Tensor
    resets: Resets


@dataclass(frozen=True)
class DocumentLayout:
    """``is_hidden_BTT``: may position t not see position s, because s > t or of another document.

    Its batch is 1 and ``documents`` absent where no document begins after the first position.
    """

    is_hidden_BTT: Tensor
    documents: Documents | None


def lay_out_documents(
    is_document_start_BT: Tensor | None, like_BTD: Tensor, conv_kernel: int, has_state: bool
) -> DocumentLayout:
    """The layout of a batch shaped like ``like_BTD``.

    Index 0 begins a document whether or not it is marked, unless ``has_state``: then only where it
    is marked. Waits for the device once, to learn whether and at which positions documents begin.
    """
    num_positions, device = like_BTD.shape[1], like_BTD.device
    square = torch.ones(num_positions, num_positions, dtype=torch.bool, device=device)
    is_future_BTT = square.triu(1)[None]
    if is_document_start_BT is None:
        return DocumentLayout(is_future_BTT, None)
    is_start_BT = is_document_start_BT.to(device=device, dtype=torch.bool, copy=True)
    if not has_state:
        is_start_BT[:, 0] = False
    steps: list[bool] = is_start_BT.any(0).tolist()
    if not any(steps):
        return DocumentLayout(is_future_BTT, None)

    index_BT = is_start_BT.cumsum(1)
    history_BK = index_BT.new_zeros(len(index_BT), conv_kernel - 1)
    padded = torch.cat([history_BK, index_BT], 1)
    position_T = torch.arange(num_positions, device=device)
    documents = Documents(
        index_BT=index_BT,
        first_BT=(position_T * is_start_BT).cummax(1).values,
        continues_BT=index_BT == 0,
        is_beyond_tap=tuple(
            padded[:, conv_kernel - 1 - distance :][:, :num_positions] != index_BT
            for distance in range(1, conv_kernel)
        ),
        is_left_BK=padded[:, num_positions:] != index_BT[:, -1:],
        resets=Resets(steps, is_start_BT.t()),
    )
    is_other_BTT = index_BT[:, :, None] != index_BT[:, None, :]
    return DocumentLayout(is_future_BTT | is_other_BTT, documents)
