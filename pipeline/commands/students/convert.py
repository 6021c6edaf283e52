"""``pipeline convert``: an untrained hybrid student of a teacher, as a model directory."""

from collections.abc import Sequence
from pathlib import Path
from shlex import quote

import click

from pipeline.options.cache_location import LocalPath
from pipeline.options.recipe_options import load_session_recipe, recipe_options
from pipeline.runtime.session import Session
from pipeline.runtime.silence_libraries import silence_libraries


@click.command()
@click.argument("teacher", metavar="TEACHER")
@recipe_options
@click.option(
    "--out",
    type=LocalPath(file_okay=False, expected="a new directory"),
    required=True,
    help="The model directory to write; there must be nothing yet.",
)
@click.pass_obj
def convert(
    session: Session, /, teacher: str, recipe_name: str, settings: Sequence[str], out: Path
) -> None:
    """Make an untrained hybrid student from a teacher.

    \b
      pipeline convert Qwen/Qwen2.5-1.5B --recipe hybrid-align --out untrained

    TEACHER is a Hub id or a directory with safetensors weights. The student has all of the
    teacher's weights and, in the layers that [train_student.student] of the recipe names, new ones;
    both are listed. Neither cache nor training is needed. OUT is a Hugging Face model directory,
    for generate, evaluate or --init of train-student.
    """
    from pipeline.students.conversion import conversion_text, convert_teacher, require_new

    recipe = load_session_recipe(session, recipe_name, settings, ignored="cache_teacher")
    require_new(recipe.train_student, out)
    silence_libraries()
    click.echo(conversion_text(convert_teacher(recipe.train_student, teacher, out)))
    click.echo(
        f"{out} holds the untrained student. Next:\n"
        f"  pipeline train-student --recipe {quote(recipe_name)} --cache … --init {quote(str(out))}"
    )
