"""Running sums and maxima of documents: values, gradients, and that not a bit passes between."""

import pytest
import torch

from stages.train_student.modeling.layers.document_scans import document_maxima, document_sums
from tests.support.packed_layers import layout_of

# One position long, powers of two and what lies beside them; the second row is cut elsewhere.
BOUNDS = [(0, 0, 1), (0, 1, 3), (0, 3, 10), (0, 10, 26), (0, 26, 43), (1, 0, 43)]
STARTS = [(row, first) for row, first, _ in BOUNDS if first]


def make_numbers(num_positions: int = 43) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_positions)
    return torch.randn(2, 3, num_positions, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("row", "first", "stop"), BOUNDS)
def test_each_document_has_its_own_sums_and_maxima(row: int, first: int, stop: int) -> None:
    x = make_numbers()
    documents = layout_of(2, 43, *STARTS).documents
    alone = x[row, :, first:stop]
    sums = document_sums(x, documents)[row, :, first:stop]
    torch.testing.assert_close(sums, alone.cumsum(-1), rtol=1e-13, atol=1e-13)
    maxima = document_maxima(x, documents)[row, :, first:stop]
    assert torch.equal(maxima, alone.cummax(-1).values)


def test_without_documents_a_row_is_one() -> None:
    x = make_numbers()
    assert torch.equal(document_sums(x, None), x.cumsum(-1))
    assert torch.equal(document_maxima(x, None), x.cummax(-1).values)


@pytest.mark.parametrize("starts", [[], [(0, 1), (0, 4), (1, 8)]])
def test_gradients_equal_finite_differences(starts: list[tuple[int, int]]) -> None:
    documents = layout_of(2, 9, *starts).documents
    x = make_numbers(9).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: document_sums(x, documents), x)


def test_sums_and_gradients_do_not_depend_on_other_documents_or_on_the_place() -> None:
    """A document of 7 at position 3 and at position 20, between others and beside huge numbers."""

    def found(at: int, others: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = make_numbers() * others
        x[:, :, at : at + 7] = make_numbers(7)
        documents = layout_of(2, 43, *[(row, p) for row in (0, 1) for p in (at, at + 7)]).documents
        sums = document_sums(x.requires_grad_(), documents)
        weights = sums.detach().cos() * others
        weights[:, :, at : at + 7] = make_numbers(7).cos()
        (grad,) = torch.autograd.grad((sums * weights).sum(), x)
        parts = (sums.detach(), grad, document_maxima(x, documents))
        first, second, third = (part[:, :, at : at + 7] for part in parts)
        return first, second, third

    expected = found(3, 1.0)
    for at, others in ((3, 1e9), (20, 1.0), (20, -1e9)):
        for one, other in zip(found(at, others), expected, strict=True):
            assert torch.equal(one, other)
