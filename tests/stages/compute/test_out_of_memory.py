"""What counts as running out of memory."""

import subprocess
import sys

import pytest
import torch

from stages.compute.out_of_memory import is_out_of_memory
from tests.support import ROOT


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_errors_are_recognized(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), ValueError("out of memory"), OSError("out of memory")]
)
def test_other_errors_are_not_taken_for_out_of_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_recognizing_out_of_memory_does_not_import_torch() -> None:
    program = "import stages.compute.out_of_memory, sys; print('torch' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert found.stdout.strip() == "False"
