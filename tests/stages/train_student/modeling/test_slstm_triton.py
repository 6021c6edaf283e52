"""The Triton kernels against the PyTorch loop, in Triton's interpreter on the CPU.

The interpreter is one of Triton's decorators' two results, so it is asked for where the kernels are
imported, and only there.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from stages.train_student.modeling.layers.slstm_autograd import (
    Loops,
    Resets,
    ScanState,
    empty_state,
    scan_with,
)
from stages.train_student.modeling.layers.slstm_backend import difference_from_loop
from stages.train_student.modeling.layers.slstm_loop import PYTORCH

HEADS = 2


@pytest.fixture(scope="module")
def kernels() -> Iterator[Loops]:
    # Earlier ones' interpreters fail on the NumPy of today.
    pytest.importorskip("triton", minversion="3.9", reason="Triton is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        from stages.train_student.modeling.layers.slstm_triton import TRITON

        yield TRITON


class Problem(NamedTuple):
    gates: Tensor
    recurrent: Tensor
    weights: Tensor
    state: ScanState | None
    resets: Resets | None


def make_problem(
    width: int, batch: int, num_positions: int, *, state: bool = True, resets: float = 0.0
) -> Problem:
    """``resets`` is the share of positions at which a document begins."""
    generator = torch.Generator().manual_seed(width + batch)
    heads = HEADS if width < 96 else 1

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    gates = normal(num_positions, heads, batch, 4, width) * 2
    recurrent = normal(heads, width, 4 * width) / width**0.5
    is_start = torch.rand(num_positions, batch, generator=generator) < resets
    y, h, log_n = normal(3, heads, batch, width)
    return Problem(
        gates.requires_grad_(),
        recurrent.requires_grad_(),
        normal(num_positions, heads, batch, width),
        ScanState(y.tanh(), h.tanh(), log_n) if state else None,
        Resets(is_start.any(1).tolist(), is_start) if resets else None,
    )


def results(loops: Loops, problem: Problem) -> tuple[Tensor, ...]:
    """Outputs, last state, and the gradients of a scalar loss."""
    inputs = (problem.gates, problem.recurrent)
    y, state = scan_with(loops, *inputs, problem.state, problem.resets)
    return (y, *state, *torch.autograd.grad((y * problem.weights).sum(), inputs))


def assert_equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("resets", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("width", "batch", "num_positions"),
    [(6, 1, 9), (6, 17, 2), (24, 3, 4), (24, 1, 1), (96, 3, 2)],
)
def test_values_and_gradients_equal_those_of_the_loop(
    kernels: Loops, width: int, batch: int, num_positions: int, resets: float
) -> None:
    problem = make_problem(width, batch, num_positions, resets=resets)
    assert_equal(results(kernels, problem), results(PYTORCH, problem))


def test_the_paper_s_head_width_works_with_more_rows_than_one_program(kernels: Loops) -> None:
    problem = make_problem(96, 17, 2, resets=0.3)
    assert_equal(results(kernels, problem), results(PYTORCH, problem))


def test_without_a_state_the_first_position_starts_from_zero(kernels: Loops) -> None:
    problem = make_problem(6, 3, 5, state=False)
    assert_equal(results(kernels, problem), results(PYTORCH, problem))


def test_forward_and_backward_of_kernels_and_loop_are_interchangeable(kernels: Loops) -> None:
    problem = make_problem(6, 3, 6, resets=0.3)
    expected = results(PYTORCH, problem)
    for mixed in (
        Loops(kernels.forward, PYTORCH.backward),
        Loops(PYTORCH.forward, kernels.backward),
    ):
        assert_equal(results(mixed, problem), expected)


def test_non_contiguous_tensors_give_the_same_result(kernels: Loops) -> None:
    problem = make_problem(6, 3, 5, resets=0.3)
    expected = results(PYTORCH, problem)
    gates = problem.gates.detach().transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    recurrent = problem.recurrent.detach().mT.contiguous().mT.requires_grad_()
    assert problem.resets is not None
    is_start = problem.resets.is_start_TB.t().contiguous().t()
    scattered = problem._replace(
        gates=gates,
        recurrent=recurrent,
        weights=problem.weights.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3),
        resets=Resets(problem.resets.steps, is_start),
    )
    assert not any(t.is_contiguous() for t in (gates, recurrent, scattered.weights, is_start))
    assert_equal(results(kernels, scattered), expected)


@pytest.mark.parametrize("gate", range(4))
@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_saturated_gates_stay_finite(kernels: Loops, gate: int, value: float) -> None:
    problem = make_problem(6, 3, 5, resets=0.3)
    with torch.no_grad():
        problem.gates[2:4, :, :, gate] = value
    for found, expected in zip(results(kernels, problem), results(PYTORCH, problem), strict=True):
        assert found.isfinite().all()
        # Float32 numbers near 10⁴ are 10⁻³ apart.
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def test_nothing_is_written_outside_the_results(kernels: Loops) -> None:
    """Head width and batch are padded within a program; a padded store would land in a neighbour's
    rows or beyond the end."""
    problem = make_problem(6, 5, 3)
    state = problem.state or empty_state(problem.gates[0, :, :, 0])
    inputs = (problem.gates.detach(), problem.recurrent.detach())
    kept, log_n = kernels.forward(*inputs, state, None)
    expected, expected_log_n = PYTORCH.forward(*inputs, state, None)
    assert_equal((*kept, log_n), (*expected, expected_log_n))
    before = [part.clone() for part in (*kept, problem.weights, inputs[1])]
    kernels.backward(problem.weights, inputs[1], kept, None)
    assert all(map(torch.equal, (*kept, problem.weights, inputs[1]), before))


def test_the_kernels_pass_the_start_up_check(kernels: Loops) -> None:
    assert difference_from_loop(kernels, torch.device("cpu"), 1, 6) < 3e-6


# In a process of its own, since a kernel is interpreted in all of a process or compiled in it.
_COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from stages.train_student.modeling.layers.slstm_triton import launch_settings
from stages.train_student.modeling.layers import slstm_triton_kernels as kernels

for kernel, unrolled in ((kernels.slstm_forward_kernel, 4), (kernels.slstm_backward_kernel, 8)):
    sizes = launch_settings(16, 8, 96).sizes | {"unrolled": unrolled, "has_resets": True}
    options = {name: sizes.pop(name) for name in ("num_warps", "num_stages", "enable_fp_fusion")}
    types = {
        name: "constexpr" if name in sizes
        else "i32" if not name.endswith("_ptr")
        else "*u8" if name == "is_start_ptr" else "*fp32"
        for name in kernel.arg_names
    }
    indices = {(kernel.arg_names.index(name),): value for name, value in sizes.items()}
    source = triton.compiler.ASTSource(kernel, types, indices)
    for capability in (80, 90):
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert compiled.asm["cubin"] and compiled.metadata.shared <= 48 * 1024
        print(compiled.metadata.name, capability)
"""


@pytest.mark.slow
def test_the_kernels_compile_for_other_gpus(tmp_path: Path) -> None:
    """The interpreter takes programs that the compiler would not."""
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _COMPILE],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4
