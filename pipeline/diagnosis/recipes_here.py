"""What each shipped recipe needs, and whether it is there.

In: the shipped recipes. Out: a section of a diagnosis. Nothing is downloaded.
"""

from pathlib import Path

from pipeline.diagnosis.diagnosis import Section
from pipeline.recipes.recipe import Recipe, listed_recipes


def recipes_section() -> Section:
    """The student and the teacher of each recipe."""
    return Section("Recipes", {name: _line(recipe) for name, recipe in listed_recipes().items()})


def _line(recipe: Recipe) -> str:
    student, teacher = recipe.train_student.student.kind, recipe.cache_teacher.teacher
    return f"{student}; teacher: {_where(teacher)}"


def _where(teacher: str) -> str:
    from huggingface_hub import try_to_load_from_cache

    if not teacher:
        return "named by its user"
    if Path(teacher).is_dir():
        return f"{teacher}, a directory here"
    found = try_to_load_from_cache(teacher, "config.json")
    return f"{teacher}, {'' if isinstance(found, str) else 'not yet '}downloaded"
