"""Settings that do not fit are refused before anything is built; the rest is the package's."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from stages.train_student.modeling.distil_xlstm.package_stack import (
    StackSettings,
    make_package_stack,
    make_stack,
)


def settings(**changes: Any) -> StackSettings:
    defaults: dict[str, Any] = {
        "hidden_size": 96,
        "num_blocks": 3,
        "slstm_at": (1,),
        "num_heads": 4,
        "conv_kernel": 4,
        "qkv_block_size": 8,
        "feedforward_factor": 1.7,
        "mlstm_factor": 2.0,
        "dropout": 0.0,
    }
    return StackSettings(**(defaults | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "num_heads = 5 must divide the model's width, 96"),
        ({"num_heads": 96}, "num_heads = 96 leaves an sLSTM head of the width 96 less than 2"),
        ({"num_heads": 5, "slstm_at": ()}, "num_heads = 5 must divide the inner width, 192"),
        ({"qkv_block_size": 5}, "qkv_block_size = 5 must divide the inner width, 192"),
        ({"mlstm_factor": 0.1, "num_heads": 48}, "num_heads = 48 must divide the inner width, 64"),
    ],
)
def test_invalid_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        settings(**changes)
    assert "[train_student.student]" in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_heads": 48, "mlstm_factor": 2.0},
        {"num_heads": 1},
        {"slstm_at": (0, 1, 2), "qkv_block_size": 5},  # no mLSTM, so its setting is not used
        {"slstm_at": (), "num_heads": 64},  # no sLSTM: heads need only divide the inner width
        {"mlstm_factor": 1.3},
    ],
)
def test_valid_settings_build_the_package_stack(changes: dict[str, Any]) -> None:
    stack: Any = make_stack(settings(**changes))
    chosen = settings(**changes)
    kinds = [type(block.xlstm).__name__ for block in stack.blocks]
    assert kinds == ["sLSTMLayer" if i in chosen.slstm_at else "mLSTMLayer" for i in range(3)]
    for block in stack.blocks:
        if hasattr(block.xlstm, "proj_down"):
            assert block.xlstm.proj_down.in_features == chosen.inner_size
        else:
            assert block.xlstm.slstm_cell.config.backend == "vanilla"
            assert block.ffn.proj_up.out_features == 2 * 192  # 1.7 × 96, rounded up to 64s


def test_the_package_s_own_forward_stays_causal_at_any_length() -> None:
    """The stack has no mask buffer of a fixed length; the package must make one itself."""
    stack = make_package_stack(settings())
    x = torch.randn(1, 12, 96, generator=torch.Generator().manual_seed(0))
    later = x.clone()
    later[:, 6:] += 1.0
    assert torch.equal(stack(x)[:, :6], stack(later)[:, :6])
    assert not list(stack.buffers())


def test_a_visible_gpu_without_a_toolkit_does_not_stop_the_import() -> None:
    """The package asks for the toolkit's path on import; here PyTorch says that a GPU is there."""
    program = (
        "import os, torch\n"
        "from torch.utils import cpp_extension\n"
        "torch.cuda.is_available = lambda: True\n"
        "cpp_extension.CUDA_HOME = None\n"
        "os.environ.pop('CUDA_LIB', None)\n"
        "{}\n"
        "print(cpp_extension.CUDA_HOME, os.environ.get('CUDA_LIB'))\n"
    )
    here = "tests.stages.train_student.modeling.test_package_stack"
    guarded = f"from {here} import *; make_stack(settings())"
    unguarded = "import xlstm"
    results = [
        subprocess.run(
            [sys.executable, "-c", program.format(statement)],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            check=False,
        )
        for statement in (guarded, unguarded)
    ]
    assert results[0].returncode == 0, results[0].stderr
    assert results[0].stdout.split() == ["None", "None"]
    assert "CUDA_HOME environment variable is not set" in results[1].stderr
