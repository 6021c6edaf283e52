"""What would run on a device: which kernels, compiled or not, in which precision.

In: PyTorch's device. Out: a section of a diagnosis, and problems. Kernels are tried, not only
looked for: a compiler that is there may not work.
"""

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from pipeline.diagnosis.diagnosis import Section
from stages.cache_teacher.teacher.attention import has_kernel
from stages.compute.compiling import Compiled
from stages.compute.half_precision import multiplies_fast
from stages.train_student.students.registry import student_kind, student_settings
from stages.train_student.students.student import TeacherParts
from stages.train_student.trainer.precision import choose_precision

# As wide as that of the recipe distil-xlstm; of its vocabulary nothing depends.
_TEACHER = TeacherParts(
    hidden_size=1536, vocab_size=8, head_rows=8, eos_token_id=None, embedding=None, head=None
)
_DTYPES = ("bfloat16", "float16")


def kernels_section(device: torch.device, compile_problem: str) -> Section:
    """What a recipe's ``auto`` stands for on ``device``."""
    with tempfile.TemporaryDirectory() as directory:
        precision = choose_precision("auto", Path(directory), device).precision
    teacher = "bfloat16" if multiplies_fast(device, torch.bfloat16) else "float32"
    query = torch.empty(1, 8, 64, device=device, dtype=getattr(torch, teacher))
    attention = "one kernel for all documents" if has_kernel(query) else "document by document"
    return Section(
        "What auto stands for",
        {
            "device": str(device),
            "cache_teacher.teacher_dtype": teacher,
            "train_student.precision": precision,
            "compile": "off: " + compile_problem if compile_problem else "on",
            "slstm_backend": _recurrence(device),
            "attention of packed rows": f"{attention}, unless the teacher's own needs a mask",
        },
    )


def _recurrence(device: torch.device) -> str:
    """Of the paper's student: the kernels are checked on ``device``."""
    kind, settings = student_kind("distil_xlstm"), student_settings()
    with torch.device("meta"):  # its shape is all that is needed
        model = kind.build(settings, _TEACHER, seed=0)
    return kind.prepare(settings, model, device)


def compile_problem(device: torch.device) -> str:
    """Why torch.compile cannot be used on ``device``, found by using it; empty if it can."""

    def function(x_N: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (x_N.exp().sum(0, keepdim=True),)

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        tried = Compiled(function, "auto", device, what="A trial", setting="compile")
        tried(torch.ones(8, 4, device=device))
    if tried.is_compiled:
        return ""
    text = next((str(warning.message) for warning in warned), "no reason given")
    return text.partition("fraction of the speed: ")[2].partition(". To compile")[0] or text


def kernel_problems(device: torch.device, compile_problem: str) -> Iterator[str]:
    """What is slow here and need not be."""
    if compile_problem:
        yield (
            f"torch.compile cannot be used: {compile_problem}. Losses and targets run at a "
            "fraction of the speed. Install g++ (on GPUs also triton)."
        )
    slow = [name for name in _DTYPES if not multiplies_fast(device, getattr(torch, name))]
    if device.type == "cuda" and slow:
        yield f"{device} is slow in {' and '.join(slow)}. Use another GPU, or float32."
