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
    "--out", type=CacheLocation(exists=False), required=True, help="The cache to make, or its URL."
)
@threads_option
def merge(caches: Sequence[Path | str], out: Path | str, threads: int) -> None:
    """Merge caches of one recipe that hold different units.

    \b
      pipeline merge part-a part-b --out cache

    Parts are made with `pipeline cache-teacher --units`, one on each machine. What --out holds
    already is kept; where two caches hold one unit, the first one's is taken. The caches are
    checked, byte by byte, and not changed. Shards become hard links where the file system has them.

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
