"""``pipeline verify``: every byte of a cache compared with its checksum."""

from pathlib import Path

import click

from pipeline.options.cache_location import CacheLocation, LocalPath
from pipeline.options.threads_option import threads_option


@click.command()
@click.argument("cache", type=CacheLocation(exists=True))
@click.option("--fresh", is_flag=True, help="Do not go on with an interrupted verification.")
@click.option(
    "--state",
    type=LocalPath(dir_okay=False),
    metavar="FILE",
    help="Where to remember what was read; by default in your cache directory.",
)
@threads_option
def verify(cache: Path | str, fresh: bool, state: Path | None, threads: int) -> None:
    """Check every byte of a cache; name each bad file.

    \b
      pipeline verify cache

    Exit code 0: every byte is as it was written. 1: something is not. Files that are no part of the
    cache are named, and count for nothing. Changes nothing in the cache.

    To resume after an interruption, type the same command again: files that were read by then, and
    were not changed since, are not read again. A verification that ended reads everything anew.
    """
    import cache_format
    from cache_format.tools.verify import verify as verify_cache
    from pipeline.reporting.printable import printable
    from pipeline.reporting.progress_bar import Bar, size
    from pipeline.runtime.next_steps import how_to
    from pipeline.runtime.verification_record import prepared_record

    opened = cache_format.open(cache, allow_incomplete=True)
    record, note = prepared_record(opened, state, fresh=fresh)
    with Bar("verify", unit="B") as bar:
        if note:
            bar.say(note)
        problems = verify_cache(
            opened,
            lambda done, total: bar.show(done, total, ""),
            num_threads=threads,
            record=record,
        )
    for problem in problems:
        click.echo(printable(problem.message))
    for line in how_to([problem.next_step for problem in problems], "verify"):
        click.echo(line)
    num_bad = sum(problem.is_damage for problem in problems)
    if num_bad:
        click.echo(f"{cache}: {num_bad} bad. Do as it says above, then verify again.")
        raise click.exceptions.Exit(1)
    num_bytes = size(sum(shard.num_bytes for shard in opened.manifest.shards))
    click.echo(
        f"{cache}: every byte is as it was written "
        f"({len(opened.manifest.shards)} shards, {num_bytes})."
    )
    if not opened.manifest.complete:
        click.echo("It is not complete: its `pipeline cache-teacher` has not finished.")
