"""The commands that move, merge, export and extend caches; ``cli.py`` adds them to the others.

As there: read the options, call what does the work, say what came of it. Nothing heavy is imported
before a command runs.
"""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, BinaryIO, Literal

import click

from pipeline.options.cache_location import CacheLocation, LocalPath
from pipeline.options.reporting_options import open_reporter
from pipeline.runtime.session import Session

if TYPE_CHECKING:
    from cache_format.tools.merge import Merged

_CACHE = CacheLocation(exists=True)
_NEW_CACHE = CacheLocation(exists=False)
_DIRECTORY = LocalPath(file_okay=False)
_ARCHIVE = LocalPath(exists=True, dir_okay=False, allow_dash=True)
_NEW_ARCHIVE = LocalPath(dir_okay=False, allow_dash=True)
_STREAM = Path("-")

threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads; by default one per core, at most 8.",
)


@click.command()
@click.argument("cache", type=_CACHE)
@click.argument("file", type=_NEW_ARCHIVE)
@click.option("--allow-incomplete", is_flag=True, help="Pack what an unfinished cache has so far.")
@threads_option
def pack(cache: Path | str, file: Path, allow_incomplete: bool, threads: int | None) -> None:
    """Write a whole cache into one .tar.zst file.

    \b
      pipeline pack cache cache.tar.zst
      pipeline pack cache - | ssh host pipeline unpack - cache

    Every file is checked against its checksum on the way. FILE appears once it is complete; "-" is
    standard output. The same cache gives the same bytes. To resume, run the same command again: it
    starts over.
    """
    import cache_format
    from cache_format.storage.atomic import atomic_file, remove_leftovers
    from cache_format.tools.archive import pack as write
    from pipeline.reporting.progress_bar import Bar, size

    opened = cache_format.open(cache, allow_incomplete=allow_incomplete)
    with ExitStack() as stack:
        bar = stack.enter_context(Bar("pack", unit="B"))
        if file == _STREAM:
            sink: BinaryIO = sys.stdout.buffer
            if sink.isatty():
                raise click.ClickException(
                    "-: standard output is a terminal. Pipe it, or name a file."
                )
        else:
            _require_free(file)
            remove_leftovers(file.parent, file.name)
            sink = stack.enter_context(atomic_file(file))
        write(
            opened,
            sink,
            num_threads=_num_threads(threads),
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
        raise click.ClickException(f"{file}: already exists. Delete it, or name another file.")
    if not file.parent.is_dir():
        raise click.ClickException(
            f"{file}: there is no directory {file.parent}. Create it first, or name another file."
        )


@click.command()
@click.argument("file", type=_ARCHIVE)
@click.argument("cache", type=_NEW_CACHE)
def unpack(file: Path, cache: Path | str) -> None:
    """Make a cache from a file that `pipeline pack` wrote.

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
    num_tokens = sum(shard.num_tokens for shard in manifest.shards)
    state = "complete" if manifest.complete else "NOT complete, and was not when it was packed"
    click.echo(
        f"{cache}: {state}; {short(num_tokens)} tokens in {len(manifest.shards)} shards, every "
        "byte as it was written."
    )


@click.command()
@click.argument("cache", type=_CACHE)
@click.argument("out", type=_DIRECTORY)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["parquet"]),
    default="parquet",
    show_default=True,
    help="File format.",
)
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "all"]),
    default="all",
    show_default=True,
    help="The rows to export.",
)
@click.option("--no-sketch", is_flag=True, help="Leave out the hidden-state sketches.")
@threads_option
def export(
    cache: Path | str,
    out: Path,
    file_format: str,
    split: Literal["train", "validation", "all"],
    no_sketch: bool,
    threads: int | None,
) -> None:
    """Export a cache to Parquet, for datasets, polars or duckdb.

    \b
      pipeline export cache parquet --format parquet --split validation

    Writes OUT/train/00001.parquet and so on, one file for each shard. A row is a packed sequence:
    unit, row, token_ids, document_starts, and for each position a list in num_kept, kept_ids,
    logprobs (of the kept ids, nats, temperature 1), tail_log_mass (of all other ids, relative to
    the largest logit, at each of the spec's inverse_temperatures), next_logprob and sketch.
    Position t predicts token t + 1; where that begins another document, its lists are empty and
    next_logprob is null.

    \b
      polars.scan_parquet("OUT/train/*.parquet")
      datasets.load_dataset("parquet", data_dir="OUT")
      duckdb.sql("SELECT unit, row, unnest(next_logprob) FROM 'OUT/train/*.parquet'")

    To resume after an interruption, run the same command again: finished files are kept.
    """
    import cache_format
    from cache_format.tools.parquet_export import Export, export_parquet
    from pipeline.reporting.progress_bar import Bar, size

    opened = cache_format.open(cache)
    splits: tuple[Literal["train", "validation"], ...] = (
        ("train", "validation") if split == "all" else (split,)
    )
    with Bar("export") as bar:
        paths = export_parquet(
            opened,
            out,
            Export(splits=splits, with_sketch=not no_sketch),
            num_threads=_num_threads(threads),
            report=lambda done, total: bar.show(done, total, ""),
        )
    num_bytes = sum(path.stat().st_size for path in paths)
    click.echo(
        f"{len(paths)} {file_format} files ({size(num_bytes)}) of {', '.join(splits)} are in {out}."
    )


@click.command()
@click.argument("caches", type=_CACHE, nargs=-1, required=True, metavar="CACHE...")
@click.option("--out", type=_NEW_CACHE, required=True, help="The cache to make, or its URL.")
@threads_option
def merge(caches: Sequence[Path | str], out: Path | str, threads: int | None) -> None:
    """Merge caches of one recipe that hold different units.

    \b
      pipeline merge part-a part-b --out cache

    Parts are made with `pipeline cache-teacher --units`, one on each machine. What --out holds
    already is kept; where two caches hold one unit, the first one's is taken. The caches are
    checked, byte by byte, and not changed. Shards become hard links where the file system has them.

    To resume after an interruption, run the same command again.
    """
    import cache_format
    from cache_format.tools.merge import merge as put_together
    from pipeline.reporting.progress_bar import Bar

    opened = [cache_format.open(cache, allow_incomplete=True) for cache in caches]
    with Bar("merge", unit="B") as bar:
        merged = put_together(
            opened,
            out,
            num_threads=_num_threads(threads),
            report=lambda done, total: bar.show(done, total, ""),
        )
    for line in _merged_text(merged, out):
        click.echo(line)


def _merged_text(merged: "Merged", out: Path | str) -> list[str]:
    """What there is now, and what is still to be done."""
    from pipeline.recipes.cached_recipe import recipe_in
    from pipeline.reporting.progress_bar import short

    state = "complete" if merged.is_complete else "NOT complete"
    lines = [
        f"{out}: {state}; {short(merged.num_tokens)} of {short(merged.num_tokens_requested)} "
        f"requested tokens, in {merged.num_units} shards."
    ]
    if merged.is_complete and merged.num_tokens < merged.num_tokens_requested:
        lines.append("The corpus ended there.")
    if merged.differing_units:
        units = ", ".join(map(str, merged.differing_units[:10]))
        more = ", …" if len(merged.differing_units) > 10 else ""
        lines.append(
            f"Units {units}{more} are in two caches with different bytes, as rounding differs "
            f"between machines; the first was taken. In total: {len(merged.differing_units)}."
        )
    again = f"pipeline cache-teacher --recipe {recipe_in(out)} --out {quote(str(out))}"
    if merged.missing_units:
        lines.append("Units are missing. Merge what has them, or make them:")
        lines += [f"  {again} --units {gap.start}:{gap.stop}" for gap in merged.missing_units]
    elif not merged.is_complete:
        lines += [
            "No unit is missing in between. To cache what comes after the last one, or to check "
            "that the corpus ends there:",
            f"  {again}",
        ]
    return lines


@click.command()
@click.argument("cache", type=_CACHE)
@click.option(
    "--tokens", "--num-tokens", "tokens", required=True, metavar="N", help="Budget, such as 1B."
)
@click.pass_obj
def extend(session: Session, cache: Path | str, tokens: str) -> None:
    """Cache more tokens, by the recipe in the cache.

    \b
      pipeline extend cache --tokens 1B

    Teacher, corpus and every setting are those that the cache was made with; teacher and corpus
    must still be where they were. Students may be trained from the cache meanwhile.

    To resume after an interruption, run the same command again.
    """
    from pipeline.commands.run_stage_one import EngineOptions, run_stage_one, send_outcome
    from pipeline.recipes.cached_recipe import recipe_in
    from pipeline.recipes.extended_recipe import extended_recipe, places_text

    session.recipe = extended_recipe(cache, tokens)
    click.echo(places_text(cache, session.recipe), err=True)
    reporter = open_reporter(session, "cache", cache)
    outcome = run_stage_one(session.recipe, cache, EngineOptions(), reporter)
    send_outcome(outcome, cache, recipe_in(cache), reporter)


def _num_threads(threads: int | None) -> int:
    from cache_format.threads import default_num_threads

    return threads or default_num_threads()
