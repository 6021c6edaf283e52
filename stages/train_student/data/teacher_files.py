"""The teacher's embedding and head, which lie in a cache.

V vocabulary with the head's padding rows, D width.
"""

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cache_format.reader import Cache

_FILE = "embedding.safetensors"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def teacher_embedding(cache: Cache) -> tuple[Tensor, Tensor | None]:
    """Embedding and head, [V, D] each; None for a head that is the embedding.

    Raises ValueError if the file, whose checksum is correct, holds none, or other numbers.
    """
    path = cache.attachment(_FILE)
    try:
        tensors = load_file(path)
        embedding, head = tensors["embedding"], tensors.get("head")
    except (SafetensorError, KeyError, AttributeError) as error:  # an unknown type of number
        raise ValueError(
            f"{path}: has no teacher's embedding ({error}), though its checksum is correct. Make "
            "the cache again."
        ) from error
    for name, tensor in {"embedding": embedding, "head": head}.items():
        if tensor is None:
            continue
        if tensor.dtype not in _DTYPES:
            raise ValueError(
                f"{path}: {name} is {str(tensor.dtype).removeprefix('torch.')}, expected float32, "
                "bfloat16 or float16. Make the cache again."
            )
        if not tensor.isfinite().all():
            raise ValueError(f"{path}: {name} holds NaN or infinity. Make the cache again.")
    return embedding, head


def teacher_head(cache: Cache) -> Tensor:
    """The head's rows that stand for ids; raises ValueError as ``teacher_embedding`` does."""
    embedding, head = teacher_embedding(cache)
    whole_VD = embedding if head is None else head
    teacher = cache.spec.teacher
    if whole_VD.shape != (teacher.head_rows, teacher.hidden_size):
        raise ValueError(
            f"{cache.attachment(_FILE)}: a head of shape {tuple(whole_VD.shape)}, expected "
            f"{(teacher.head_rows, teacher.hidden_size)}. Make the cache again."
        )
    return whole_VD[: teacher.vocab_size]
