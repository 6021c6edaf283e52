"""The sLSTM's Triton kernels on the GPU they are compiled for, against the loop in float64."""

import json
import math
import os
from collections.abc import Iterator

import pytest
import torch

import pipeline.demo
from pipeline.recipes.recipe import load_recipe
from stages.train_student.modeling.layers.slstm_autograd import Loops, Resets, scan_with
from stages.train_student.modeling.layers.slstm_backend import choose_scan, difference_from_loop
from stages.train_student.modeling.layers.slstm_loop import PYTORCH
from tests.support import ROOT

pytestmark = pytest.mark.gpu
# (heads, width of a head) of the recipes over teachers that they are for, and some that are odd.
SHAPES = {
    "distil-xlstm, Qwen2.5-1.5B": (16, 96),
    "distil-xlstm, Qwen2.5-0.5B": (16, 56),
    "demo": (4, 64),
    "small, width 576": (4, 144),
    "small, width 896": (4, 224),
    "narrow": (2, 6),
}


@pytest.fixture(scope="module")
def kernels(device: torch.device) -> Iterator[Loops]:
    """Compiled on a GPU, interpreted elsewhere."""
    pytest.importorskip("triton", minversion="3.5", reason="Triton is not installed")
    with pytest.MonkeyPatch.context() as patch:
        if device.type != "cuda":
            patch.setenv("TRITON_INTERPRET", "1")
        assert device.type != "cuda" or "TRITON_INTERPRET" not in os.environ
        from stages.train_student.modeling.layers.slstm_triton import TRITON

        yield TRITON


def test_the_recipes_head_widths_are_among_those_tested() -> None:
    teacher = json.loads((ROOT / "pipeline/demo/teacher/config.json").read_text())
    assert pipeline.demo.__name__ == "pipeline.demo"
    for recipe, width in (("demo", teacher["hidden_size"]), ("distil-xlstm", 1536)):
        student = load_recipe(recipe, []).train_student.student
        heads: int = student.num_heads  # type: ignore[attr-defined]
        assert (heads, width // heads) in SHAPES.values(), recipe


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_equal_the_loop_in_float64(
    device: torch.device, kernels: Loops, shape: str
) -> None:
    """Of outputs, last state and both gradients, with and without documents in between."""
    heads, width = SHAPES[shape]
    if device.type != "cuda":  # a program of the interpreter takes milliseconds
        heads, width = 1, min(width, 6)
    assert difference_from_loop(kernels, device, heads, width) < 2e-5


@pytest.mark.parametrize("share_of_starts", [0.0, 0.02, 1.0])
def test_a_long_sequence_equals_the_loop_in_float64(
    device: torch.device, kernels: Loops, share_of_starts: float
) -> None:
    on_gpu = device.type == "cuda"
    num_positions, heads, batch, width = (512, 16, 7, 96) if on_gpu else (24, 1, 3, 6)
    generator = torch.Generator().manual_seed(0)
    gates = torch.randn(num_positions, heads, batch, 4, width, generator=generator).to(device) * 2
    recurrent = torch.randn(heads, width, 4 * width, generator=generator).to(device)
    recurrent /= math.sqrt(width)
    is_start = torch.rand(num_positions, batch, generator=generator) < share_of_starts
    resets = Resets(is_start.any(1).tolist(), is_start.to(device)) if share_of_starts else None
    found, expected = (
        _results(loops, gates.to(dtype), recurrent.to(dtype), resets)
        for loops, dtype in ((kernels, torch.float32), (PYTORCH, torch.float64))
    )
    for ours, exact in zip(found, expected, strict=True):
        assert (ours.double() - exact).abs().max() <= 2e-5 * exact.abs().max()


def _results(
    loops: Loops, gates: torch.Tensor, recurrent: torch.Tensor, resets: Resets | None
) -> tuple[torch.Tensor, ...]:
    leaves = (gates.clone().requires_grad_(), recurrent.clone().requires_grad_())
    y, _ = scan_with(loops, *leaves, None, resets)
    return (y.detach(), *torch.autograd.grad(y.square().sum(), leaves))


@pytest.mark.parametrize("shape", list(SHAPES)[:1])
def test_the_kernels_are_what_a_run_chooses(device: torch.device, shape: str) -> None:
    choice = choose_scan("auto", device, *SHAPES[shape])
    if device.type == "cuda":
        assert choice.sentence.endswith("found equal to the PyTorch loop"), choice.sentence
    else:
        assert choice.sentence == "sLSTM scan: PyTorch loop on cpu"
