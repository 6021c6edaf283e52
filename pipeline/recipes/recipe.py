"""Read a recipe: a TOML file with one table of settings per stage.

In: the name of a shipped recipe or a file, and overrides from the command line. Out: both stages'
checked configs. Imports nothing heavy, so that a wrong recipe is refused at once.
"""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_type_hints

from pipeline.recipes.values import convert, from_command_line
from stages.cache_teacher.config import CacheTeacherConfig
from stages.recipe_table import recipe_table
from stages.train_student.config import TrainStudentConfig

Config = TypeVar("Config", CacheTeacherConfig, TrainStudentConfig)

_CONFIGS: dict[str, type] = {
    "cache_teacher": CacheTeacherConfig,
    "train_student": TrainStudentConfig,
}


_RENAMED = {
    "accumulation": "gradient_accumulation_steps",
    "checkpoint_every": "save_steps",
    "clip_norm": "max_grad_norm",
    "draw_temperature": "sampling_temperature",
    "head_columns": "sampled_softmax_size",
    "keep_checkpoints": "save_total_limit",
    "keep_mass": "top_p",
    "log_every": "logging_steps",
    "num_draws": "num_samples",
    "num_epochs": "num_train_epochs",
    "sketch": "hidden_projection",
    "sketch_dim": "hidden_projection_dim",
    "sketch_dtype": "hidden_projection_dtype",
    "slstm": "slstm_backend",
    "trackers": "report_to",
    "validate_every": "eval_steps",
    "warmup_fraction": "warmup_ratio",
}
"""Keys of earlier versions, and what they are called now."""


class RecipeError(ValueError):
    """A recipe or an override that cannot be used: where, which key, what was expected."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What both stages are told."""

    description: str = ""
    used_by: str = ""
    """The command that fills in what this recipe leaves open, if it is made for one."""
    cache_teacher: CacheTeacherConfig = field(default_factory=CacheTeacherConfig)
    train_student: TrainStudentConfig = field(default_factory=TrainStudentConfig)

    def to_toml(self) -> str:
        """Every value as TOML that loads back equal; a value that is ``None`` is left out."""
        import tomli_w

        document: dict[str, Any] = {"description": self.description}
        if self.used_by:
            document["used_by"] = self.used_by
        for table in _CONFIGS:
            document[table] = recipe_table(getattr(self, table))
        return tomli_w.dumps(document)


class Override(NamedTuple):
    """A setting from the command line; ``option`` is how an error quotes it."""

    option: str
    table: str
    key: str
    text: str


class _Setting(NamedTuple):
    """A value as TOML gives it, and where it stands, with its key."""

    value: object
    where: str


def load_recipe(name_or_file: str, overrides: Sequence[Override] = ()) -> Recipe:
    """The shipped recipe or the file ``name_or_file`` with ``overrides`` on top; the last one wins.

    Raises RecipeError.
    """
    return parse_recipe(*_read(name_or_file), overrides)


def parse_recipe(source: str, text: str, overrides: Sequence[Override] = ()) -> Recipe:
    """The recipe ``text``, which errors call ``source``; see ``load_recipe``."""
    (description, used_by), tables = _parse(source, text)
    for override in overrides:
        value = _value_of(override)
        tables[override.table][override.key] = _Setting(value, override.option)
    return Recipe(
        description=description,
        used_by=used_by,
        cache_teacher=_config(CacheTeacherConfig, "cache_teacher", source, tables),
        train_student=_config(TrainStudentConfig, "train_student", source, tables),
    )


def parse_override(text: str) -> Override:
    """``table.key=value``, as ``--set`` takes it. Raises RecipeError."""
    path, equals, value = (part.strip() for part in text.partition("="))
    table, dot, key = path.partition(".")
    if not (equals and dot and key):
        raise RecipeError(f"--set {text}: expected TABLE.KEY=VALUE")
    return Override(f"--set {path}={value}", table, key, value)


def token_budget(text: str) -> Override:
    """``--tokens 512M``."""
    return Override(f"--tokens {text}", "cache_teacher", "num_tokens", text)


def recipe_names() -> list[str]:
    """The shipped recipes."""
    return sorted(_shipped())


def listed_recipes() -> dict[str, Recipe]:
    """The shipped recipes by name, without those that are made for another command."""
    recipes = {name: load_recipe(name) for name in recipe_names()}
    return {name: recipe for name, recipe in recipes.items() if not recipe.used_by}


def require_teacher_and_corpus(name: str, recipe: Recipe) -> None:
    """Raise RecipeError where the recipe called ``name`` leaves open what only its user knows."""
    places = {
        "teacher": "a directory with safetensors weights, or a Hub id",
        "corpus": "a file or directory of documents, or a Hub dataset",
    }
    config = recipe.cache_teacher
    lacking = [key for key in places if not getattr(config, key)]
    if not lacking:
        return
    step = f"Run `{recipe.used_by}`, which sets them; by hand, add" if recipe.used_by else "Add"
    keys = " and ".join(f"cache_teacher.{key}" for key in lacking)
    options = "".join(f"\n  --set cache_teacher.{key}=…  ({places[key]})" for key in lacking)
    raise RecipeError(f"recipe {name}: {keys} not set. {step}:{options}")


def recipe_text(name_or_file: str) -> str:
    """A recipe as it was written, comments included. Raises RecipeError."""
    return _read(name_or_file)[1]


def _shipped() -> dict[str, Path]:
    """Name and file of every shipped recipe; packages are never imported from an archive here."""
    directory = Path(str(resources.files("pipeline") / "recipes"))
    return {path.stem: path for path in directory.glob("*.toml")}


def _read(name_or_file: str) -> tuple[str, str]:
    """What errors call the recipe, and its text."""
    shipped = _shipped()
    path = shipped.get(name_or_file, Path(name_or_file))
    try:
        return str(path), path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        names = ", ".join(listed_recipes())
        raise RecipeError(
            f"{name_or_file}: neither a file nor one of the shipped recipes: {names}; "
            "`pipeline recipes` describes them"
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: a recipe is UTF-8 text: {error}") from error
    except IsADirectoryError as error:
        inside = path / "recipe.toml"
        hint = f". Did you mean {inside}?" if inside.is_file() else ""
        raise RecipeError(
            f"{path}: a directory; expected the name of a shipped recipe or a TOML file{hint}"
        ) from error
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error


def _parse(source: str, text: str) -> tuple[list[str], dict[str, dict[str, _Setting]]]:
    """Description and used_by, and settings by table, their values not yet checked."""
    try:
        document = tomllib.loads(text)
    except RecursionError as error:
        raise RecipeError(f"{source}: not a recipe: its values are nested too deep") from error
    except ValueError as error:  # TOML's own, and Python's for numbers of thousands of digits
        raise RecipeError(f"{source}: not valid TOML: {error}") from error
    head = [document.pop(key, "") for key in ("description", "used_by")]
    for key, value in zip(("description", "used_by"), head, strict=True):
        if not isinstance(value, str):
            raise RecipeError(f"{source}: {key}: expected a string, found {value!r}")
    tables: dict[str, dict[str, _Setting]] = {name: {} for name in _CONFIGS}
    for name, table in document.items():
        _refuse_unknown(source, "table", name, _CONFIGS)
        if not isinstance(table, dict):
            raise RecipeError(f"{source}: {name}: expected a table, found {table!r}")
        for key, value in table.items():
            tables[name][key] = _Setting(value, f"{source}: [{name}] {key}")
    return head, tables


def _value_of(override: Override) -> object:
    _refuse_unknown(override.option, "table", override.table, _CONFIGS)
    hints = get_type_hints(_CONFIGS[override.table])
    _refuse_unknown(override.option, "key", override.key, hints)
    return from_command_line(override.text, hints[override.key])


def _config(
    kind: type[Config], table: str, source: str, tables: Mapping[str, Mapping[str, _Setting]]
) -> Config:
    """The checked config of ``table``."""
    hints = get_type_hints(kind)
    settings = tables[table]
    values: dict[str, Any] = {}
    for key, setting in settings.items():
        _refuse_unknown(setting.where, "key", key, hints)
        try:
            values[key] = convert(setting.value, hints[key])
        except ValueError as error:
            raise RecipeError(f"{setting.where}: {error}") from error
    try:
        return kind(**values)
    except ValueError as error:
        key, _, reason = str(error).partition(": ")
        where = _blame(key, table, source, settings)
        found = values[key] if key in values else f"the default {getattr(kind, key)}"
        raise RecipeError(f"{where}: {reason}, found {found}") from error


def _blame(key: str, table: str, source: str, settings: Mapping[str, _Setting]) -> str:
    """Where to look for an impossible value of ``key``: there, and at what was set beside it."""
    where = settings[key].where if key in settings else f"{source}: [{table}] {key}"
    beside = {setting.where for setting in settings.values() if setting.where.startswith("--")}
    if where in beside or not beside:
        return where
    return f"{where} (with {', '.join(sorted(beside))})"


def _refuse_unknown(where: str, what: str, name: str, valid: Iterable[str]) -> None:
    names = list(valid)
    if name in names:
        return
    if what == "key" and _RENAMED.get(name) in names:
        raise RecipeError(f'{where}: unknown key "{name}"; it is now called "{_RENAMED[name]}"')
    (nearest,) = get_close_matches(name, names, n=1, cutoff=0.0)
    elsewhere = [table for table, kind in _CONFIGS.items() if name in get_type_hints(kind)]
    if what == "key" and elsewhere:
        raise RecipeError(f'{where}: unknown key "{name}"; it belongs to [{elsewhere[0]}]')
    raise RecipeError(f'{where}: unknown {what} "{name}"; the nearest is "{nearest}"')
