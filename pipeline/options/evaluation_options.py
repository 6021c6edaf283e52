"""Options of the commands that evaluate students on validation rows, or resample the figures."""

from collections.abc import Callable
from typing import Any

import click

Decorator = Callable[[Any], Any]

batch_size_option: Decorator = click.option(
    "--batch-size",
    type=click.IntRange(min=1, max=2**31 - 1),
    default=8,
    show_default=True,
    metavar="N",
)
device_option: Decorator = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
)
seed_option: Decorator = click.option(
    "--seed",
    type=click.IntRange(min=0, max=2**32 - 1),
    default=0,
    show_default=True,
    help="Seed of the bootstrap.",
)


def rows_option(what: str = "Number of validation rows to use") -> Decorator:
    """``--rows``, ``what`` being said of them."""
    return click.option(
        "--rows",
        type=click.IntRange(min=1, max=2**31 - 1),
        metavar="N",
        help=f"{what}, evenly spaced; by default all.",
    )


def resamples_option(default: int, of: str) -> Decorator:
    """``--resamples``, of the rows or bands that are said."""
    return click.option(
        "--resamples",
        type=click.IntRange(min=1, max=10**6),
        default=default,
        show_default=True,
        metavar="N",
        help=f"Bootstrap resamples of {of}.",
    )
