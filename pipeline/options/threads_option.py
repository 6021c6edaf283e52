"""``--threads``, for the commands that read a whole cache."""

import click


def _default() -> int:
    from cache_format.threads import default_num_threads

    return default_num_threads()


threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1, max=1024),
    default=_default,
    metavar="N",
    help="Threads; by default one per core, at most 8.",
)
