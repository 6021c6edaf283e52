"""``pipeline recipes``: the shipped recipes, listed or printed."""

import click


@click.command()
@click.argument("recipe_name", metavar="[NAME|FILE]", required=False)
def recipes(recipe_name: str | None) -> None:
    """List the shipped recipes, or print one.

    \b
      pipeline recipes
      pipeline recipes distil-xlstm > mine.toml

    The second line makes a copy to edit; pass it as --recipe mine.toml.
    """
    from pipeline.recipes.recipe import listed_recipes, recipe_text

    if recipe_name is not None:
        click.echo(recipe_text(recipe_name), nl=False)
        return
    for name, recipe in listed_recipes().items():
        click.echo(f"{name:20} {recipe.description}")
