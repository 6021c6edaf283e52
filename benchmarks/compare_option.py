"""``--compare KEY=VALUE,…``: settings of ``[cache_teacher]`` in place of a benchmark's own."""

from collections.abc import Sequence
from typing import Any

import click

from pipeline.recipes.recipe import load_recipe, parse_override

compare_option = click.option(
    "--compare",
    "compared",
    multiple=True,
    metavar="KEY=VALUE,…",
    help="Compare settings of [cache_teacher], such as targets=hidden,hidden_kl=0.1; repeatable. "
    "They replace the built-in ones.",
)


def compared_texts(compared: Sequence[str]) -> list[dict[str, str]]:
    """Each as keys and values, as they were written."""
    return [_parsed(text) for text in compared]


def compared_settings(compared: Sequence[str]) -> list[dict[str, Any]]:
    """Each as a recipe has it."""
    found = []
    for texts in compared_texts(compared):
        overrides = [parse_override(f"cache_teacher.{key}={text}") for key, text in texts.items()]
        config = load_recipe("distil-xlstm", overrides).cache_teacher
        found.append({key: getattr(config, key) for key in texts})
    return found


def _parsed(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(key and value for key, _, value in pairs):
        raise click.BadParameter(f"{text!r}: expected KEY=VALUE,…", param_hint="--compare")
    return {key.strip(): value.strip() for key, _, value in pairs}
