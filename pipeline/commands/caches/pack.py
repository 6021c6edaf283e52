"""``pipeline pack`` and ``pipeline unpack``: a cache as one file, and back."""

import sys
from contextlib import ExitStack
from pathlib import Path
from shlex import quote
from typing import BinaryIO

import click

from pipeline.options.cache_location import CacheLocation, LocalPath
from pipeline.options.threads_option import threads_option

_STREAM = Path("-")


@click.command()
@click.argument("cache", type=CacheLocation(exists=True))
@click.argument("file", type=LocalPath(dir_okay=False, allow_dash=True))
@click.option(
    "--allow-incomplete", is_flag=True, help="Pack the finished part of an unfinished cache."
)
@threads_option
def pack(cache: Path | str, file: Path, allow_incomplete: bool, threads: int) -> None:
    """Write a whole cache into one .tar.zst file.

    \b
      pipeline pack cache cache.tar.zst
      pipeline pack cache - | ssh host pipeline unpack - cache

    Every file is checked against its checksum while packing. FILE appears only when it is complete;
    "-" is standard output. The same cache always gives the same bytes. An interrupted command
    starts over when it is run again.
    """
    import cache_format
    from cache_format.storage.atomic import atomic_file, remove_leftovers
    from cache_format.tools.archive import pack as write
    from cache_format.tools.inside import require_outside
    from pipeline.reporting.progress_bar import Bar, size

    opened = cache_format.open(cache, allow_incomplete=allow_incomplete)
    with ExitStack() as stack:
        bar = stack.enter_context(Bar("pack", unit="B"))
        if file == _STREAM:
            sink: BinaryIO = sys.stdout.buffer
            if sink.isatty():
                raise click.ClickException(
                    "-: standard output is a terminal. Pipe it, or give a file name."
                )
        else:
            _require_free(file)
            require_outside(file.parent.resolve() / file.name, opened.storage)
            remove_leftovers(file.parent, file.name)
            sink = stack.enter_context(atomic_file(file))
        write(
            opened,
            sink,
            num_threads=threads,
            report=lambda done, total: bar.show(done, total, ""),
        )
        sink.flush()
    if file != _STREAM:
        click.echo(
            f"{file} ({size(file.stat().st_size)}) holds {cache}. To unpack it:\n"
            f"  pipeline unpack {quote(file.name)} CACHE"
        )


def _require_free(file: Path) -> None:
    if file.exists():
        raise click.ClickException(f"{file}: already exists. Delete it, or choose another file.")
    if not file.parent.is_dir():
        raise click.ClickException(
            f"{file}: no such directory: {file.parent}. Create it, or choose another file."
        )


@click.command()
@click.argument("file", type=LocalPath(exists=True, dir_okay=False, allow_dash=True))
@click.argument("cache", type=CacheLocation(exists=False))
def unpack(file: Path, cache: Path | str) -> None:
    """Unpack a cache from a file that `pipeline pack` wrote.

    \b
      pipeline unpack cache.tar.zst cache
      curl -s https://example.org/cache.tar.zst | pipeline unpack - cache

    Every file is checked against its checksum before it is published. To resume after an
    interruption, run the same command again: finished files are kept. "-" is standard input.
    """
    from cache_format.tools.archive import unpack as read
    from pipeline.reporting.progress_bar import Bar, short

    is_stream = file == _STREAM
    name = "standard input" if is_stream else str(file)
    with ExitStack() as stack:
        source = sys.stdin.buffer if is_stream else stack.enter_context(file.open("rb"))
        bar = stack.enter_context(Bar("unpack", unit="B"))
        manifest = read(
            source, cache, name=name, report=lambda done, total: bar.show(done, total, "")
        )
    num_tokens = manifest.num_tokens
    state = "complete" if manifest.complete else "NOT complete, as it was when packed"
    click.echo(
        f"{cache}: {state}; {short(num_tokens)} tokens in {len(manifest.shards)} shards, all "
        "checksums verified."
    )
