"""The demo's table: how far each student is from the text and from the teacher."""

import math
from collections.abc import Mapping, Sequence

import click

from pipeline.demo.hybrid import HybridStudent
from pipeline.demo.student import Student

Row = tuple[str, float, float, float]
"""What it is of, validation loss and KL to the teacher in nats, agreement from 0 to 1."""


def table_rows(distilled: Student, labels: Student, hybrid: HybridStudent | None) -> list[Row]:
    """The teacher and all students, from their validations on the same rows."""
    untrained = labels.validations[0]
    rows = [
        ("teacher", untrained["validation/teacher_loss"], 0.0, 1.0),
        *(_row(f"student, {s.name}", s.last) for s in (distilled, labels)),
        _row("student, untrained", untrained),
    ]
    if hybrid is None:
        return rows
    return [
        *rows,
        _row("student, equal tokens", distilled.after(hybrid.num_rows)),
        _row("hybrid, converted", hybrid.converted),
        *(_row(s.name, s.last) for s in (hybrid.aligned, hybrid.distilled)),
    ]


def print_table(rows: Sequence[Row]) -> None:
    """One line for each row, below what the columns are."""
    click.secho(
        f"\n{'':22}{'validation loss':>16}{'perplexity':>12}{'KL to teacher':>15}{'agreement':>11}",
        bold=True,
    )
    for name, loss, kl, agreement in rows:
        click.echo(f"{name:22}{loss:16.4f}{math.exp(loss):12.1f}{kl:15.4f}{agreement:11.1%}")


def hybrid_sentence(distilled: Student, hybrid: HybridStudent, tokens_per_row: int) -> str:
    """How the hybrid student compares with the other one after as many tokens."""
    at_equal = distilled.after(hybrid.num_rows)
    step, num_rows = int(at_equal["step"]), int(at_equal["step"]) * distilled.rows_per_step
    gain = at_equal["validation/loss"] - hybrid.distilled.last["validation/loss"]
    return (
        f"After {hybrid.num_rows * tokens_per_row:,} tokens, aligned on "
        f"{hybrid.aligned.num_rows * tokens_per_row:,} of them, the hybrid student is "
        f"{abs(gain):.4f} nats {'below' if gain >= 0 else 'ABOVE'} the distilled student after "
        f"{num_rows * tokens_per_row:,} (step {step}). It began with all of its teacher's weights."
    )


def _row(name: str, metrics: Mapping[str, float]) -> Row:
    return (
        name,
        metrics["validation/loss"],
        metrics["validation/kl"],
        metrics["validation/agreement"],
    )
