"""Products with the head in every precision, and what the loss makes of them."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from stages.compute.matmul import bfloat16_product, factor, product
from stages.train_student.losses.sparse_kl import SparseDistillationLoss, sparse_distillation_loss
from stages.train_student.losses.vocabulary_pass import VocabularyWeights
from tests.support.dense_teachers import make_problem, sparse, with_draws
from tests.support.loss_gradients import CPU, MODES, gradients_of, loss_of

# Of values, and of a gradient's error over its norm.
BOUNDS = {torch.bfloat16: 3e-2, torch.float16: 4e-3}


def test_half_precision_rounds_factors_but_not_results() -> None:
    left, right = torch.randn(3, 40), torch.randn(40, 5)
    for dtype, multiply in ((torch.float16, product), (torch.float32, product)):
        found = multiply(factor(left, dtype), factor(right, dtype))
        exact = left.to(dtype).double() @ right.to(dtype).double()
        torch.testing.assert_close(found, exact.float(), rtol=1e-5, atol=1e-5)


def test_bfloat16_is_set_only_during_the_multiplication() -> None:
    left, right = torch.randn(64, 256), torch.randn(256, 300)
    settings_: Any = torch.backends.mkldnn
    before = settings_.matmul.fp32_precision
    exact = left.double() @ right.double()
    found = bfloat16_product(left, right)
    assert (found - exact).norm() / exact.norm() < 2**-7
    assert settings_.matmul.fp32_precision == before
    assert (product(left, right) - exact).norm() / exact.norm() < 1e-6
    with pytest.raises(RuntimeError):
        bfloat16_product(left, left)
    assert settings_.matmul.fp32_precision == before


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
@settings(max_examples=15)
@given(
    seed=st.integers(0, 10_000),
    num_positions=st.integers(1, 9),
    vocab=st.integers(10, 70),
    num_draws=st.sampled_from([None, 20]),
    temperature=st.sampled_from([1.0, 2.0]),
    weight=st.sampled_from([1e-5, 0.5]),
    chunk=st.integers(1, 10),
)
def test_a_float32_head_may_multiply_in_half_precision(
    mode: str,
    dtype: torch.dtype,
    seed: int,
    num_positions: int,
    vocab: int,
    num_draws: int | None,
    temperature: float,
    weight: float,
    chunk: int,
) -> None:
    """Values and both gradients within the bounds; gradients by the head in its own precision."""
    hidden, head, labels, teacher = make_problem(seed, num_positions, vocab)
    targets = sparse(teacher, [8] * num_positions, 8)
    if num_draws is not None:
        generator = torch.Generator().manual_seed(0)
        targets = with_draws(targets, teacher, num_draws, 1.0, generator)
    weights = VocabularyWeights(weight, 2 * weight, temperature)
    problem = (hidden, head, labels, targets, weights, chunk)
    sums, *found = gradients_of(loss_of(mode, dtype), *problem)
    expected, *exact = gradients_of(loss_of(mode), *problem)
    assert sums.weighted.item() == pytest.approx(expected.weighted.item(), rel=BOUNDS[dtype])
    for gradient, exactly in zip(found, exact, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - exactly).norm() / exactly.norm() < BOUNDS[dtype]


@pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
def test_gradients_have_the_dtype_of_their_input(dtype: torch.dtype) -> None:
    hidden, head, labels, teacher = make_problem(1, 5, 30)
    targets = sparse(teacher, [8] * 5, 8)
    rounded = (hidden.to(dtype), head.to(dtype))
    _, *found = gradients_of(
        loss_of("off", dtype), *rounded, labels, targets, VocabularyWeights(0.5, 0.5, 1.0), 2
    )
    assert {gradient.dtype for gradient in found} == {dtype}


def test_padding_rows_of_a_trained_head_get_no_gradient() -> None:
    hidden, head, labels, teacher = make_problem(2, 6, 40)
    targets = sparse(teacher, [5] * 6, 5)
    padded = torch.cat((head, torch.full((8, 16), 50.0))).requires_grad_()
    loss = loss_of("off")
    sums = loss(hidden, padded[:40], labels, targets, VocabularyWeights(0.4, 0.6, 2.0))
    (found,) = torch.autograd.grad(sums.weighted, padded)
    _, _, expected = gradients_of(
        loss, hidden, head, labels, targets, VocabularyWeights(0.4, 0.6, 2.0), 4
    )
    torch.testing.assert_close(found[:40], expected)
    assert (found[40:] == 0).all()


class _Results(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes what every operation returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.shapes.add(tuple(result.shape))
        return result


@pytest.mark.parametrize("trains_head", [False, True])
def test_logits_of_all_positions_are_never_in_memory_at_once(trains_head: bool) -> None:
    """And a frozen head's gradient does not, either."""
    hidden, head, labels, teacher = make_problem(3, 64, 500, width=4)
    targets = sparse(teacher, [5] * 64, 5)
    hidden.requires_grad_()
    head.requires_grad_(trains_head)
    loss = SparseDistillationLoss(chunk=8, dtype=torch.float32, compile="off", device=CPU)
    with _Results() as noted:
        sums = loss(hidden, head, labels, targets, VocabularyWeights(0.5, 0.5, 1.5))
        sums.weighted.backward()  # type: ignore[no-untyped-call]
    assert (8, 500) in noted.shapes
    assert max(math.prod(shape) for shape in noted.shapes) == 8 * 500
    assert ((500, 4) in noted.shapes) == (head.grad is not None) == trains_head


def test_without_gradients_a_trained_head_is_only_read() -> None:
    hidden, head, labels, _ = make_problem(4, 6, 30)
    targets = sparse(hidden.double() @ head.double().T, [5] * 6, 5)
    head.requires_grad_()
    with torch.no_grad():
        sums = sparse_distillation_loss(
            hidden, head, labels, targets, VocabularyWeights(0.0, 1.0, 1.0), 4
        )
    assert sums.num_agreeing.item() == 6  # which is not counted where a gradient is asked for
    sums = sparse_distillation_loss(
        hidden, head, labels, targets, VocabularyWeights(0.0, 1.0, 1.0), 4
    )
    assert sums.num_agreeing.item() == 0
    assert sums.weighted.requires_grad
