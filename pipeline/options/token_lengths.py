"""Lengths in tokens, separated by commas, as the command line takes them."""

import click

_MOST = 2**20


def token_lengths(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """``512,1024`` as numbers from 1 to 2^20 in rising order, each once; a ``callback``."""
    if value is None:
        return None
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdecimal() and part.isascii() and len(part) < 9 for part in parts):
        raise click.BadParameter(f"expected numbers such as 512,1024, found {value!r}.")
    lengths = sorted({int(part) for part in parts})
    if not 1 <= lengths[0] <= lengths[-1] <= _MOST:
        raise click.BadParameter(f"expected lengths from 1 to {_MOST}, found {value!r}.")
    return tuple(lengths)
