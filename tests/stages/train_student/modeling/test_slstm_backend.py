"""Which sLSTM scan runs where, with GPUs that are only named, and the check that admits kernels."""

import sys
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from stages.train_student.modeling.layers import slstm_backend
from stages.train_student.modeling.layers.slstm import slstm_scan
from stages.train_student.modeling.layers.slstm_autograd import (
    Kept,
    Loops,
    Resets,
    ScanState,
    scan_with,
)
from stages.train_student.modeling.layers.slstm_backend import choose_scan, difference_from_loop
from stages.train_student.modeling.layers.slstm_loop import PYTORCH

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
KERNELS = "stages.train_student.modeling.layers.slstm_triton"
CHECK = "difference_from_loop"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slstm_backend, "_chosen", {})
    monkeypatch.setattr(
        slstm_backend,
        "_checked_triton",
        cache(slstm_backend._checked_triton.__wrapped__),
    )


class Counted:
    """The PyTorch loops in place of the kernels, counting their calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.loops = Loops(self._forward, PYTORCH.backward)

    def _forward(
        self, gates: Tensor, recurrent: Tensor, state: ScanState, resets: Resets | None
    ) -> tuple[Kept, Tensor]:
        self.calls += 1
        return PYTORCH.forward(gates, recurrent, state, resets)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counted = Counted()
    monkeypatch.setitem(sys.modules, KERNELS, SimpleNamespace(TRITON=counted.loops))
    return counted


def answer(monkeypatch: pytest.MonkeyPatch, difference: float | Exception) -> list[int]:
    """Have the check give this answer; the list grows by one with every check."""
    checks: list[int] = []

    def check(*_: object) -> float:
        checks.append(1)
        if isinstance(difference, Exception):
            raise difference
        return difference

    monkeypatch.setattr(slstm_backend, CHECK, check)
    return checks


def make_inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, None, None]:
    return torch.ones(3, 2, 1, 4, 5, dtype=dtype), torch.ones(2, 5, 20, dtype=dtype), None, None


def test_on_a_cpu_the_slstm_scan_is_the_pytorch_loop(kernels: Counted) -> None:
    choice = choose_scan("auto", CPU, 2, 5)
    assert choice.sentence == "sLSTM scan: PyTorch loop on cpu"
    choice.scan(*make_inputs())
    assert kernels.calls == 0


def test_triton_on_a_cpu_is_an_error() -> None:
    with pytest.raises(ValueError, match="slstm_backend=triton runs on GPUs only, and this is cpu"):
        choose_scan("triton", CPU, 2, 5)


def test_the_torch_backend_on_a_gpu_runs_no_kernel_check(
    monkeypatch: pytest.MonkeyPatch, kernels: Counted
) -> None:
    checks = answer(monkeypatch, 0.0)
    choice = choose_scan("torch", GPU, 2, 5)
    assert choice.sentence == "sLSTM scan: PyTorch loop on cuda:0"
    choice.scan(*make_inputs())
    assert checks == []
    assert kernels.calls == 0


@pytest.mark.parametrize("mode", ["auto", "triton"])
def test_kernels_that_pass_the_check_are_used(
    monkeypatch: pytest.MonkeyPatch, kernels: Counted, mode: slstm_backend.Mode
) -> None:
    checks = answer(monkeypatch, 1e-6)
    choice = choose_scan(mode, GPU, 2, 5)
    assert choice.sentence == "sLSTM scan: Triton on cuda:0, found equal to the PyTorch loop"
    found = choice.scan(*make_inputs())[0]
    assert kernels.calls == 1
    assert torch.equal(found, scan_with(PYTORCH, *make_inputs())[0])
    choice.scan(*make_inputs(torch.float64))
    assert kernels.calls == 1  # kernels are float32
    choose_scan(mode, GPU, 2, 5)
    assert checks == [1]
    choose_scan(mode, GPU, 2, 6)
    assert checks == [1, 1]


def forget_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, KERNELS, raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)


def fail_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, RuntimeError("\nno C compiler\nat line 3"))


def differ(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, 0.002)


def give_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, float("nan"))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (forget_triton, "Triton cannot be imported (import of triton halted; None in sys.modules)"),
        (fail_to_compile, "Triton's kernels failed (no C compiler)"),
        (differ, "Triton's kernels are 2.0e-03 of the largest value off the PyTorch loop"),
        (give_nan, "Triton's kernels are nan of the largest value off the PyTorch loop"),
    ],
)
def test_kernels_that_fail_the_check_are_replaced_by_the_loop_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
    kernels: Counted,
    fault: Callable[[pytest.MonkeyPatch], None],
    reason: str,
) -> None:
    fault(monkeypatch)
    choice = choose_scan("auto", GPU, 2, 5)
    assert choice.sentence == f"sLSTM scan: PyTorch loop on cuda:0, since {reason}"
    choice.scan(*make_inputs())
    assert kernels.calls == 0
    with pytest.raises(ValueError, match="slstm_backend=triton cannot run on cuda:0") as caught:
        choose_scan("triton", GPU, 2, 5)
    assert reason in str(caught.value)


def test_out_of_memory_during_the_kernel_check_propagates(
    monkeypatch: pytest.MonkeyPatch, kernels: Counted
) -> None:
    answer(monkeypatch, torch.OutOfMemoryError("full"))
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        choose_scan("auto", GPU, 2, 5)


def test_the_scan_uses_the_backend_chosen_for_its_size(
    monkeypatch: pytest.MonkeyPatch, kernels: Counted
) -> None:
    chosen = slstm_backend.ScanChoice(slstm_backend._scan_by(kernels.loops), "")
    monkeypatch.setitem(slstm_backend._chosen, (CPU, 2, 5), chosen)
    slstm_scan(*make_inputs())
    assert kernels.calls == 1
    choose_scan("auto", CPU, 2, 6)
    slstm_scan(*make_inputs())
    assert kernels.calls == 2
    choose_scan("auto", CPU, 2, 5)
    slstm_scan(*make_inputs())
    assert kernels.calls == 2


def forgetting_resets() -> Loops:
    return Loops(lambda g, r, state, _: PYTORCH.forward(g, r, state, None), PYTORCH.backward)


def forgetting_resets_backward() -> Loops:
    return Loops(PYTORCH.forward, lambda dy, r, kept, _: PYTORCH.backward(dy, r, kept, None))


def forgetting_the_state() -> Loops:
    return Loops(
        lambda g, r, s, resets: PYTORCH.forward(g, r, s._replace(y=0 * s.y), resets),
        PYTORCH.backward,
    )


def losing_the_last_log_n() -> Loops:
    def forward(g: Tensor, r: Tensor, s: ScanState, resets: Resets | None) -> tuple[Kept, Tensor]:
        kept, log_n = PYTORCH.forward(g, r, s, resets)
        return kept, log_n + 0.01

    return Loops(forward, PYTORCH.backward)


def giving_nan_gradients() -> Loops:
    return Loops(PYTORCH.forward, lambda *args: PYTORCH.backward(*args) * torch.nan)


@pytest.mark.parametrize(
    "broken",
    [
        forgetting_resets,
        forgetting_resets_backward,
        forgetting_the_state,
        losing_the_last_log_n,
        giving_nan_gradients,
    ],
)
def test_the_kernel_check_detects_broken_kernels(broken: Callable[[], Loops]) -> None:
    assert difference_from_loop(broken(), CPU, 2, 5) > 10 * slstm_backend._TOLERANCE


@pytest.mark.parametrize("width", [5, 96])
def test_the_kernel_check_tolerates_rounding(width: int) -> None:
    assert 0 < difference_from_loop(PYTORCH, CPU, 2, width) < slstm_backend._TOLERANCE / 20


@pytest.mark.parametrize("block", [torch.no_grad, torch.inference_mode])
def test_the_kernel_check_runs_under_no_grad_and_inference_mode(
    block: Callable[[], torch.no_grad],
) -> None:
    with block():
        assert difference_from_loop(PYTORCH, CPU, 2, 5) < slstm_backend._TOLERANCE


def test_the_kernel_check_does_not_change_the_random_state() -> None:
    before = torch.get_rng_state()
    difference_from_loop(PYTORCH, CPU, 2, 5)
    assert torch.equal(torch.get_rng_state(), before)
