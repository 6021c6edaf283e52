"""Whether a loaded teacher does what a cache takes for granted, found out on a few short documents.

In: the model, and how documents are packed into it. Out: nothing, or an error that says what comes
out wrong. B rows, T positions, D width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache_format.metadata.spec_parts.teacher import TeacherSpec
from stages.cache_teacher.corpus.packing import IntArray
from stages.cache_teacher.targets.teacher_head import Head
from stages.cache_teacher.teacher.attention import MASKED

Forward = Callable[[IntArray, Sequence[IntArray]], Tensor]
_FAILURES = (
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


@torch.inference_mode()
def refuse_unfaithful(model: Any, spec: TeacherSpec, head: Head, forward: Forward) -> None:
    """Raise ValueError unless packed documents have the logits that each has alone.

    ``forward`` makes last hidden states [B, T, D] of packed rows. Alone, a document goes through
    the model's own forward pass, head included, and if it is packed without a mask, ``eager``.
    """
    name = f"teacher {model.config.model_type!r}"
    ids_BT, starts = _documents(_probe_length(model), spec.vocab_size)
    with _explained(name, spec):
        hidden_BTD = forward(ids_BT, starts)
        changed_BTD = forward(_with_other_first_documents(ids_BT, starts, spec), starts)
    tolerance = max(1e-5, 4 * torch.finfo(hidden_BTD.dtype).eps)
    for row, first_end in enumerate(row_starts[0] for row_starts in starts):
        if not _agree(changed_BTD[row, first_end:], hidden_BTD[row, first_end:], tolerance):
            raise ValueError(
                f"{name}: under attention {spec.attention!r} a document's hidden states depend on "
                f"the document before it in the row. {_other_attention(spec)}"
            )
    for row, row_starts in enumerate(starts):
        for begin, end in pairwise([0, *row_starts.tolist(), ids_BT.shape[1]]):
            with _explained(name, spec), _masked_attention(model, spec):
                theirs_TV = _logits_alone(model, ids_BT[row, begin:end])[:, : spec.vocab_size]
            ours_TV = head.logits(hidden_BTD[row, begin:end])
            if _agree(ours_TV, theirs_TV, 1e-3 if spec.dtype == "float32" else 5e-2):
                continue
            if begin == 0:
                raise ValueError(
                    f"{name}: its logits are not its head applied to its last hidden state. Use a "
                    "teacher whose logits are."
                )
            raise ValueError(
                f"{name}: under attention {spec.attention!r} a document gives different logits "
                f"after another one than alone. {_other_attention(spec)}"
            )


def _probe_length(model: Any) -> int:
    """T of the probe: on a GPU several blocks of a kernel; elsewhere it is to cost no time."""
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    wanted = 256 if model.device.type == "cuda" else 16
    return min(wanted, longest or wanted)


def _documents(length: int, vocab_size: int) -> tuple[IntArray, list[IntArray]]:
    """Two rows, of three documents and of two, and where all but the first start."""
    ids_BT = (np.arange(2 * length, dtype=np.int32) * 7 % vocab_size).reshape(2, length)
    places = [{length // 3, length // 2}, {2 * length // 3}]
    return ids_BT, [np.unique(np.maximum(1, list(starts))).astype(np.int32) for starts in places]


def _with_other_first_documents(
    ids_BT: IntArray, starts: Sequence[IntArray], spec: TeacherSpec
) -> IntArray:
    changed_BT = ids_BT.copy()
    for row, row_starts in enumerate(starts):
        changed_BT[row, : row_starts[0]] = (ids_BT[row, : row_starts[0]] + 1) % spec.vocab_size
    return changed_BT


def _logits_alone(model: Any, ids_T: IntArray) -> Tensor:
    ids_BT = torch.from_numpy(ids_T.astype(np.int64))[None].to(model.device)
    logits_TV: Tensor = model(input_ids=ids_BT, use_cache=False).logits[0]
    return logits_TV


@contextmanager
def _masked_attention(model: Any, spec: TeacherSpec) -> Iterator[None]:
    """An attention without kernels in place of one that goes by the ends of documents."""
    if spec.attention in MASKED:
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(spec.attention)


@contextmanager
def _explained(name: str, spec: TeacherSpec) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except _FAILURES as error:
        raise ValueError(
            f"{name}: fails on packed documents under attention {spec.attention!r}: "
            f"{type(error).__name__}: {error}. {_other_attention(spec)}"
        ) from error


def _other_attention(spec: TeacherSpec) -> str:
    if spec.attention in MASKED:
        return "Use a teacher with ordinary attention."
    return 'Set attention to "sdpa" or "eager", or use a teacher with ordinary attention.'


def _agree(ours_TX: Tensor, theirs_TX: Tensor, tolerance: float) -> bool:
    """Equal but for rounding at most positions; what is not finite is for ``targets`` to report.

    At most: where two experts are all but equal, rounding chooses, and one position differs.
    """
    ours_TX, theirs_TX = ours_TX.float(), theirs_TX.float()
    if not (torch.isfinite(ours_TX).all() and torch.isfinite(theirs_TX).all()):
        return True
    differences_T = (ours_TX - theirs_TX).abs().amax(1)
    return bool(differences_T.median() <= tolerance * theirs_TX.abs().max())
