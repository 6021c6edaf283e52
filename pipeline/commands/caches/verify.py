"""``pipeline verify``: every byte of a cache compared with its checksum."""

from pathlib import Path

import click

from pipeline.options.cache_location import CacheLocation, LocalPath
from pipeline.options.threads_option import threads_option


@click.command()
@click.argument("cache", type=CacheLocation(exists=True))
@click.option("--fresh", is_flag=True, help="Do not resume an interrupted verification.")
@click.option(
    "--state",
    type=LocalPath(dir_okay=False),
    metavar="FILE",
    help="File that records progress; by default in your user cache directory.",
)
@threads_option
def verify(cache: Path | str, fresh: bool, state: Path | None, threads: int) -> None:
    """Check every byte of a cache and list damaged files.

    \b
      pipeline verify cache

    The exit code is 0 if every byte is as it was written, otherwise 1. Files that are not part of
    the cache are listed, but do not affect the exit code. Nothing in the cache is changed.

    To resume after an interruption, run the same command again: files that were already read and
    have not changed since are skipped. After a finished verification, everything is read again.
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
        click.echo(f"{cache}: {num_bad} damaged. Follow the steps above, then verify again.")
        raise click.exceptions.Exit(1)
    num_bytes = size(sum(shard.num_bytes for shard in opened.manifest.shards))
    click.echo(
        f"{cache}: every byte is as it was written "
        f"({len(opened.manifest.shards)} shards, {num_bytes})."
    )
    if not opened.manifest.complete:
        click.echo("The cache is not complete: its `pipeline cache-teacher` has not finished.")
