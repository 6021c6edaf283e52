"""What the rest of stage two asks about Distil-xLSTM."""

import pytest
import torch

from stages.train_student.modeling.distil_xlstm.build import build_student
from stages.train_student.modeling.distil_xlstm.modeling import DistilXLSTMForCausalLM
from stages.train_student.modeling.distil_xlstm.settings import DistilXLSTMSettings
from stages.train_student.students.distil_xlstm import KIND
from stages.train_student.students.student import TeacherParts


def test_the_paper_s_student_takes_a_gigaflop_and_a_half() -> None:
    """84.18M trained parameters, 151,936 rows of width 1,536: 6 and 4 operations a weight, and
    12 · 3,072 · 192 for each of three mLSTM blocks."""
    with torch.device("meta"):
        student = build_student(
            DistilXLSTMSettings(),
            hidden_size=1536,
            vocab_size=151_936,
            head_rows=151_936,
            eos_token_id=None,
            embedding=None,
            head=None,
            seed=0,
        )
    expected = 6 * 84.18e6 + 4 * 151_936 * 1536 + 3 * 12 * 3072 * 192
    assert KIND.operations_per_token(student) == pytest.approx(expected, rel=1e-4)
    student.lm_head.weight.requires_grad_(True)
    assert KIND.operations_per_token(student) == pytest.approx(expected * 1.3202, rel=1e-3)


def test_the_number_of_blocks_is_compared_before_they_are_built() -> None:
    settings = DistilXLSTMSettings(num_blocks=2, slstm_at=(0,))
    names = ["xlstm_block_stack.blocks.0.xlstm.a", "xlstm_block_stack.blocks.1.ffn.b", "head"]
    assert KIND.blocks_differ(settings, [*names, names[0]]) == ""
    found = KIND.blocks_differ(settings, names[:1])
    assert found == "num_blocks is 2, but the weights have 1 blocks."


def test_a_student_without_slstm_needs_no_scan_backend() -> None:
    student, cpu = make_student(), torch.device("cpu")
    assert KIND.prepare(DistilXLSTMSettings(num_blocks=1, slstm_at=()), student, cpu) == ""
    said = KIND.prepare(DistilXLSTMSettings(slstm_backend="torch"), student, cpu)
    assert said == "sLSTM scan: PyTorch loop on cpu"
    with pytest.raises(ValueError, match="slstm_backend=triton runs on GPUs only"):
        KIND.prepare(DistilXLSTMSettings(slstm_backend="triton"), student, cpu)


def make_student() -> DistilXLSTMForCausalLM:
    parts = TeacherParts(
        hidden_size=32, vocab_size=9, head_rows=9, eos_token_id=None, embedding=None, head=None
    )
    return KIND.build(DistilXLSTMSettings(num_heads=4, qkv_block_size=4), parts, seed=0)
