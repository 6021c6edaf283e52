"""What a comparison says of a difference, and when it says nothing."""

import pytest

from pipeline.judgement.bootstrap import BootstrapOptions
from pipeline.student_comparison.comparison import (
    Comparison,
    compare_figures,
    comparison_json,
    verdict,
)
from pipeline.student_comparison.row_figures import RowFigures

OPTIONS = BootstrapOptions(num_resamples=200, seed=0)


def figures(num_rows: int, loss: float) -> RowFigures:
    return RowFigures(
        cache_id="",
        validation_sha256="",
        model_sha256="",
        rows=tuple(range(num_rows)),
        num_scored=(2,) * num_rows,
        cross_entropy=(loss,) * num_rows,
        kl=(1.0,) * num_rows,
        num_agreeing=(1.0,) * num_rows,
    )


def compared(num_rows: int) -> Comparison:
    """B's loss is lower by 1 nat in each row."""
    return Comparison(
        names=("a", "b"),
        figures=compare_figures(figures(num_rows, 4.0), figures(num_rows, 2.0), OPTIONS),
        num_rows=num_rows,
        num_scored=2 * num_rows,
        cache="cache",
        cache_id="",
        kl_temperature=1.0,
        options=OPTIONS,
    )


def test_thirty_rows_are_a_verdict() -> None:
    found = compared(30)
    assert verdict(found, found.figures[0]) == (
        "loss: the difference is real: B is better than A, by 1 nats."
    )
    assert verdict(found, found.figures[1]) == (
        "KL(T=1): no difference is shown: the interval includes 0."
    )
    assert comparison_json(found)["figures"]["loss"]["is_real"] is True


@pytest.mark.parametrize(("num_rows", "text"), [(1, "1 row"), (2, "2 rows"), (29, "29 rows")])
def test_fewer_rows_are_none(num_rows: int, text: str) -> None:
    """Rows that all differ alike give an interval without width, which proves nothing."""
    found = compared(num_rows)
    assert [verdict(found, figure) for figure in found.figures] == [
        f"{label}: too few rows to tell: {text}, and a verdict takes 30."
        for label in ("loss", "KL(T=1)", "agreement")
    ]
    assert {each["is_real"] for each in comparison_json(found)["figures"].values()} == {None}
