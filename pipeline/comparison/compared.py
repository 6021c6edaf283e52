"""The settings of ``[cache_teacher]`` that are compared. A row of the table is added here.

Imports nothing heavy.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from stages.cache_teacher.config import CacheTeacherConfig

LEVELS = {32: 104, 64: 128, 128: 176}
"""``num_levels`` for an error below 2e-4 nats, by the number of kept ids."""

REFERENCE: Mapping[str, Any] = {"targets": "top_k", "top_k": 64}
"""What the time of the others is compared with: the paper's setting."""

COMPARED: tuple[Mapping[str, Any], ...] = (
    {"targets": "top_k", "top_k": 32},
    REFERENCE,
    {"targets": "top_k", "top_k": 128},
    {"targets": "top_k", "top_k": 32, "tail_moment_dim": 16},
    {"targets": "sampled", "num_samples": 50},
    {"targets": "top_k+sampled", "top_k": 64, "num_samples": 50},
    {"targets": "hidden", "hidden_kl": 0.2},
    {"targets": "hidden", "hidden_kl": 0.05},
    {"targets": "hidden", "hidden_kl": 0.05, "hidden_quantization": "nearest"},
    {"targets": "hidden", "hidden_kl": 0.02},
    {"targets": "top_k+hidden", "top_k": 32, "hidden_kl": 0.2},
)
"""Those that are left out have their defaults, but for ``num_levels``, see ``LEVELS``."""

_TARGET_SETTINGS = (
    *("targets", "top_k", "top_p", "num_levels", "inverse_temperatures"),
    *("num_samples", "sampling_temperature", "hidden_kl", "hidden_quantization", "tail_moment_dim"),
)
"""The settings that say what is kept of a distribution, see ``TargetSettings``."""


@dataclass(frozen=True)
class Compared:
    """A row of the table: settings of the targets, and a recipe with them."""

    settings: Mapping[str, Any]
    """``targets``, and what differs from the defaults."""
    config: CacheTeacherConfig
    is_recipe: bool
    """Whether these are the recipe's own."""


def with_settings(base: CacheTeacherConfig, settings: Mapping[str, Any]) -> CacheTeacherConfig:
    """``base`` with these settings of the targets, the others being defaults."""
    changes: dict[str, Any] = {name: _defaults()[name] for name in _TARGET_SETTINGS}
    if (num_levels := LEVELS.get(settings.get("top_k", 0))) is not None:
        changes["num_levels"] = num_levels
    return replace(base, **(changes | dict(settings)))


def compared_with(recipe: CacheTeacherConfig, vocab_size: int) -> list[Compared]:
    """All of ``COMPARED`` that a teacher of ``vocab_size`` ids allows, and the recipe's own, which
    comes first where it is none of them."""
    found = []
    for settings in COMPARED:
        if settings.get("top_k", 0) <= vocab_size:
            config = with_settings(recipe, settings)
            found.append(Compared(settings, config, is_recipe=_is_same(config, recipe)))
    if not any(one.is_recipe for one in found):
        found.insert(0, Compared(_own_settings(recipe), recipe, is_recipe=True))
    return found


def _is_same(one: CacheTeacherConfig, other: CacheTeacherConfig) -> bool:
    """Whether both make the same targets, whatever the settings that their kind does not use."""
    from stages.cache_teacher.target_settings import SETTINGS_OF_KINDS

    return SETTINGS_OF_KINDS[one.targets].make_spec(one) == SETTINGS_OF_KINDS[
        other.targets
    ].make_spec(other)


def _own_settings(recipe: CacheTeacherConfig) -> dict[str, Any]:
    """``targets``, the settings that all rows of its kind name, and others that make a difference
    to the defaults."""
    rows = [row for row in COMPARED if row["targets"] == recipe.targets]
    named = {name for row in rows for name in row if all(name in other for other in rows)}
    plain = with_settings(recipe, {name: getattr(recipe, name) for name in named})
    return {
        name: getattr(recipe, name)
        for name in _TARGET_SETTINGS
        if name in named or not _is_same(plain, replace(plain, **{name: getattr(recipe, name)}))
    }


def _defaults() -> dict[str, Any]:
    return {field.name: field.default for field in fields(CacheTeacherConfig)}
