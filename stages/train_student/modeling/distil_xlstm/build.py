"""Makes a new student around its teacher's embedding and head.

In: settings and the teacher's weights and sizes. Out: the student, with random blocks.
"""

import torch
from torch import Tensor

from stages.train_student.modeling.distil_xlstm.configuration import DistilXLSTMConfig
from stages.train_student.modeling.distil_xlstm.modeling import DistilXLSTMForCausalLM
from stages.train_student.modeling.distil_xlstm.settings import DistilXLSTMSettings


def build_student(
    settings: DistilXLSTMSettings,
    *,
    hidden_size: int,
    vocab_size: int,
    head_rows: int,
    eos_token_id: int | None,
    embedding: Tensor | None,
    head: Tensor | None,
    seed: int,
) -> DistilXLSTMForCausalLM:
    """A student with the package's initialisation, a function of ``seed`` alone.

    ``embedding`` and ``head`` [R, D] are the teacher's, kept as they are; no head means that it is
    tied to the embedding; no embedding leaves a random one. A head that is to be trained
    (``settings.train_head``) is a float32 copy, and not tied. The global random state is untouched.
    Blocks are float32 and, unless under another ``torch.device``, on the CPU. Raises ValueError
    where settings or shapes do not fit.
    """
    shape = (head_rows, hidden_size)
    for name, tensor in (("embedding", embedding), ("head", head)):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(
                f"teacher's {name}: expected head_rows × hidden_size = {shape}, "
                f"found {tuple(tensor.shape)}. Make the cache again from an intact teacher."
            )
    if vocab_size > head_rows:
        raise ValueError(
            f"teacher: vocab_size = {vocab_size} is more than the {head_rows} rows of the head. "
            "Make the cache again from an intact teacher."
        )
    frozen_dtype = torch.float32 if embedding is None else embedding.dtype
    if head is not None and head.dtype != frozen_dtype:
        raise ValueError(
            f"teacher's head is {head.dtype}, its embedding {frozen_dtype}: expected the same. "
            "Make the cache again from an intact teacher."
        )
    student_config = DistilXLSTMConfig(
        vocab_size=vocab_size,
        head_rows=head_rows,
        hidden_size=hidden_size,
        embedding_dtype=str(frozen_dtype).removeprefix("torch."),
        num_blocks=settings.num_blocks,
        slstm_at=list(settings.slstm_at),
        num_heads=settings.num_heads,
        conv_kernel=settings.conv_kernel,
        qkv_block_size=settings.qkv_block_size,
        feedforward_factor=settings.feedforward_factor,
        mlstm_factor=settings.mlstm_factor,
        dropout=settings.dropout,
        train_head=settings.train_head,
        tie_word_embeddings=head is None and not settings.train_head,
        eos_token_id=eos_token_id,
        pad_token_id=eos_token_id,
        dtype="float32",
    )
    if settings.train_head and head is None and embedding is not None:
        head = embedding.to(torch.float32, copy=True)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return DistilXLSTMForCausalLM(student_config, embedding, head)
