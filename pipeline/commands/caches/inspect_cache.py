"""``pipeline inspect``: what is in a cache, or in one of its rows."""

from pathlib import Path
from typing import Literal

import click

from pipeline.options.cache_location import CacheLocation


@click.command("inspect")
@click.argument("cache", type=CacheLocation(exists=True))
@click.option("--row", type=click.IntRange(min=0, max=2**63 - 1), metavar="N", help="Decode row N.")
@click.option(
    "--split",
    type=click.Choice(["train", "validation"]),
    default="train",
    show_default=True,
    help="The split of --row.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect_cache(
    cache: Path | str, row: int | None, split: Literal["train", "validation"], as_json: bool
) -> None:
    """Summarize a cache, or decode one of its rows.

    \b
      pipeline inspect cache
      pipeline inspect cache --row 0 --split validation

    The summary has bytes per token of each column, and what the targets leave out of the teacher:
    the mass outside of the kept ids, in a few rows, and what rounding hidden states has lost.

    Read-only. Also works on a cache that is still being written.
    """
    import json

    from pipeline.reports.inspection import summarise, summary_text
    from pipeline.reports.row_view import decode_row, row_text

    if row is None:
        summary = summarise(cache)
        click.echo(json.dumps(summary, indent=1) if as_json else summary_text(summary))
    else:
        decoded = decode_row(cache, split, row)
        click.echo(json.dumps(decoded, indent=1) if as_json else row_text(decoded))
