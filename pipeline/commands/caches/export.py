"""``pipeline export``: a cache as Parquet files."""

from pathlib import Path
from typing import Literal

import click

from pipeline.options.cache_location import CacheLocation, LocalPath
from pipeline.options.threads_option import threads_option


@click.command()
@click.argument("cache", type=CacheLocation(exists=True))
@click.argument("out", type=LocalPath(file_okay=False))
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
@click.option("--no-sketch", is_flag=True, help="Omit the projected hidden states (sketch).")
@threads_option
def export(
    cache: Path | str,
    out: Path,
    file_format: str,
    split: Literal["train", "validation", "all"],
    no_sketch: bool,
    threads: int,
) -> None:
    """Export a cache to Parquet, for datasets, polars or duckdb.

    \b
      pipeline export cache parquet --format parquet --split validation

    Writes OUT/train/00001.parquet and so on, one file per shard. Each row is a packed sequence with
    the columns unit, row, token_ids, document_starts, and, with one item per position, is_context,
    num_kept, kept_ids, logprobs (of the kept ids, in nats, at temperature 1), tail_log_mass (of all
    other ids, relative to the largest logit, at each of the spec's inverse_temperatures),
    next_logprob, coefficients (of the last hidden state, if the cache stores it) and sketch.
    Position t predicts token t + 1. It is not scored if that begins another document or the
    position is context (its next token is given, but not to be learned): its lists are then empty
    and its next_logprob is null.

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
            num_threads=threads,
            report=lambda done, total: bar.show(done, total, ""),
        )
    num_bytes = sum(path.stat().st_size for path in paths)
    click.echo(
        f"{len(paths)} {file_format} files ({size(num_bytes)}) of {', '.join(splits)} are in {out}."
    )
