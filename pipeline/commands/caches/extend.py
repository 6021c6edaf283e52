"""``pipeline extend``: more tokens for a cache, by its own recipe."""

from pathlib import Path

import click

from pipeline.options.cache_location import CacheLocation
from pipeline.options.reporting_options import open_reporter
from pipeline.runtime.session import Session


@click.command()
@click.argument("cache", type=CacheLocation(exists=True))
@click.option(
    "--tokens", "--num-tokens", "tokens", required=True, metavar="N", help="Budget, such as 1B."
)
@click.pass_obj
def extend(session: Session, cache: Path | str, tokens: str) -> None:
    """Cache more tokens, with the recipe in the cache.

    \b
      pipeline extend cache --tokens 1B

    Uses the teacher, corpus and settings that the cache was made with; teacher and corpus must
    still be in the same place. Students can be trained from the cache in the meantime.

    To resume after an interruption, run the same command again.
    """
    from pipeline.commands.run_stage_one import run_stage_one, send_outcome
    from pipeline.options.engine_options import EngineOptions
    from pipeline.recipes.cached_recipe import recipe_in
    from pipeline.recipes.extended_recipe import extended_recipe, places_text

    session.recipe = extended_recipe(cache, tokens)
    click.echo(places_text(cache, session.recipe), err=True)
    reporter = open_reporter(session, "cache", cache)
    outcome = run_stage_one(session.recipe, cache, EngineOptions(), reporter)
    send_outcome(outcome, cache, recipe_in(cache), reporter)
