"""``pipeline merge``: caches of different units become one."""

from collections.abc import Sequence
from pathlib import Path

import click

from pipeline.options.cache_location import CacheLocation
from pipeline.options.threads_option import threads_option


@click.command()
@click.argument(
    "caches", type=CacheLocation(exists=True), nargs=-1, required=True, metavar="CACHE..."
)
@click.option(
    "--out",
    type=CacheLocation(exists=False),
    required=True,
    help="Directory of the merged cache, or its URL.",
)
@threads_option
def merge(caches: Sequence[Path | str], out: Path | str, threads: int) -> None:
    """Merge caches of the same recipe that hold different units.

    \b
      pipeline merge part-a part-b --out cache

    Parts are made with `pipeline cache-teacher --units`, one on each machine. Units that --out
    already holds are kept; if two caches hold the same unit, the first one's is used. Every byte of
    the caches is checked, and they are not changed. Shards are hard-linked where possible.

    To resume after an interruption, run the same command again.
    """
    import cache_format
    from cache_format.tools.merge import merge as merge_caches
    from pipeline.reporting.progress_bar import Bar
    from pipeline.reports.merge_report import merge_text

    opened = [cache_format.open(cache, allow_incomplete=True) for cache in caches]
    with Bar("merge", unit="B") as bar:
        merged = merge_caches(
            opened,
            out,
            num_threads=threads,
            report=lambda done, total: bar.show(done, total, ""),
        )
    click.echo(merge_text(merged, out))
