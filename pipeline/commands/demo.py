"""``pipeline demo``: both stages on a small teacher, without a network."""

from collections.abc import Sequence
from pathlib import Path

import click

from pipeline.options.cache_location import LocalPath
from pipeline.runtime.session import Session


@click.command()
@click.option(
    "--out",
    type=LocalPath(file_okay=False),
    default=Path("demo-out"),
    show_default=True,
    help="Directory for everything that the demo writes.",
)
@click.option("--seed", type=click.IntRange(min=0, max=2**32 - 1), default=0, show_default=True)
@click.option(
    "--hybrid",
    is_flag=True,
    help="Also convert the teacher into a hybrid student, align and distill it: some minutes more.",
)
@click.pass_obj
def demo(session: Session, out: Path, seed: int, hybrid: bool) -> None:
    """Cache a small teacher, train two students, compare them.

    \b
      pipeline demo --out demo-out
      pipeline demo --out demo-out --hybrid

    Needs no network and no GPU, and takes minutes. Writes corpus, cache, runs, a table and a plot
    to --out. Run it again to resume, or to see the results again.
    """
    from pipeline.demo.run import run_demo

    pipeline = click.get_current_context().find_root().command

    def command(arguments: Sequence[str]) -> None:
        with pipeline.make_context("pipeline", list(arguments), obj=session) as context:
            pipeline.invoke(context)

    run_demo(out, command, seed=seed, with_hybrid=hybrid)
