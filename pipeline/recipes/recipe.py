"""Read a recipe: a TOML file with one table of settings per stage, and one for the student.

In: the name of a shipped recipe or a file, and overrides from the command line. Out: both stages'
checked configs. Imports nothing heavy, so that a wrong recipe is refused at once.
"""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from cache_format.errors import StorageError
from cache_format.storage.atomic import open_regular
from pipeline.recipes.values import convert, from_command_line, shown
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.corpus_settings import total_tokens
from stages.recipe_table import recipe_table
from stages.train_student.config import TrainStudentConfig
from stages.train_student.students.registry import DEFAULT_KIND, SETTINGS, settings_class

_STUDENT = "train_student.student"
_TABLES: dict[str, tuple[type, ...]] = {
    "cache_teacher": (CacheTeacherConfig,),
    "train_student": (TrainStudentConfig,),
    _STUDENT: tuple(SETTINGS.values()),  # one a kind
}
"""The tables of a recipe, and the classes that their settings may be of."""

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


_SHOWN_BY = {"hybrid_xlstm": "hybrid-align"}
"""The shipped recipe with all keys of a kind of student that is not the default."""

_MAX_BYTES = 1 << 20  # of a recipe; the shipped ones have a few thousand


class RecipeError(ValueError):
    """A recipe or an override that cannot be used: where, which key, what was expected."""

    student_kind: str | None = None
    """The kind of the recipe's student, as far as that could be read."""

    @property
    def advice(self) -> str:
        """Which shipped recipes show the keys."""
        text = "`pipeline recipes distil-xlstm` prints every key with its default"
        shown_by = _SHOWN_BY.get(self.student_kind or "")
        if shown_by is None:
            return f"{text}."
        return f"{text}, `pipeline recipes {shown_by}` those of a {self.student_kind} student."


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
        for table in ("cache_teacher", "train_student"):
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
    try:
        # The kind first, as it says which keys a student has.
        for override in sorted(overrides, key=lambda override: override.key != "kind"):
            value = _value_of(override, tables)
            tables[override.table][override.key] = _Setting(value, override.option)
        student = _config(_STUDENT, source, tables)
        return Recipe(
            description=description,
            used_by=used_by,
            cache_teacher=_config("cache_teacher", source, tables),
            train_student=_config("train_student", source, tables, student=student),
        )
    except RecipeError as error:
        kind = tables[_STUDENT].get("kind")
        error.student_kind = None if kind is None else str(kind.value)
        raise


def parse_override(text: str) -> Override:
    """``table.key=value``, as ``--set`` takes it. Raises RecipeError."""
    path, equals, value = (part.strip() for part in text.partition("="))
    table, dot, key = path.rpartition(".")
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
    each = recipe.cache_teacher.each_corpus.values()
    lacking = [key for key in places if not all(getattr(settings, key) for settings in each)]
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
        with open_regular(path) as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise RecipeError(
                f"{path}: larger than {_MAX_BYTES:,} bytes, so not a recipe; expected the name of "
                "a shipped recipe or a TOML file"
            )
        return str(path), data.decode("utf-8")
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
    except StorageError as error:
        raise RecipeError(
            f"{path}: not a regular file, but a pipe or a device. Save the recipe to a file and "
            "pass that"
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
    tables: dict[str, dict[str, _Setting]] = {name: {} for name in _TABLES}
    for name, table in document.items():
        _refuse_unknown(source, "table", name, _TABLES)
        _take_table(source, name, table, tables)
    return head, tables


def _take_table(
    source: str, name: str, table: object, tables: Mapping[str, dict[str, _Setting]]
) -> None:
    """Put the settings of the table ``name``, and of those within it, into ``tables``."""
    if not isinstance(table, dict):
        raise RecipeError(f"{source}: {name}: expected a table, found {table!r}")
    for key, value in table.items():
        if f"{name}.{key}" in _TABLES:
            _take_table(source, f"{name}.{key}", value, tables)
        else:
            tables[name][key] = _Setting(value, f"{source}: [{name}] {key}")


def _class_of(table: str, tables: Mapping[str, Mapping[str, _Setting]]) -> type:
    """The class of ``table``'s settings; the student's is that of its kind."""
    if table != _STUDENT:
        return _TABLES[table][0]
    kind = tables[_STUDENT].get("kind", _Setting(DEFAULT_KIND, ""))
    try:
        return settings_class(kind.value)
    except ValueError as error:
        raise RecipeError(f"{kind.where}: {error}") from error


def _hints(kind: Any) -> dict[str, Any]:
    """The types of a table's keys; what is a table itself is none of them."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind) if field.name != "student"}


def _value_of(override: Override, tables: Mapping[str, Mapping[str, _Setting]]) -> object:
    _refuse_unknown(override.option, "table", override.table, _TABLES)
    if (inner := f"{override.table}.{override.key}") in _TABLES:
        raise RecipeError(f"{override.option}: [{inner}] is a table: expected {inner}.KEY=VALUE")
    if (override.table, override.key) == (_STUDENT, "kind"):
        return from_command_line(override.text, str)
    hints = _hints(_class_of(override.table, tables))
    _refuse_unknown(override.option, "key", override.key, hints)
    return from_command_line(override.text, hints[override.key])


def _config(
    table: str, source: str, tables: Mapping[str, Mapping[str, _Setting]], **inner: object
) -> Any:
    """The checked config of ``table``; ``inner`` are those of tables within it."""
    kind: Any = _class_of(table, tables)
    hints = _hints(kind)
    settings = tables[table]
    values: dict[str, Any] = {}
    for key, setting in settings.items():
        _refuse_unknown(setting.where, "key", key, hints)
        try:
            values[key] = convert(setting.value, hints[key])
        except ValueError as error:
            raise RecipeError(f"{setting.where}: {error}") from error
    if table == "cache_teacher" and "num_tokens" not in values and values.get("corpora"):
        total = total_tokens(values["corpora"])
        values |= {} if total is None else {"num_tokens": total}
    try:
        return kind(**values, **inner)
    except ValueError as error:
        key, _, reason = str(error).partition(": ")
        where = _blame(key, table, source, settings)
        if key == "corpora":  # what was found is in the reason: nobody reads whole tables
            raise RecipeError(f"{where}: {reason}") from error
        found = shown(values[key]) if key in values else f"the default {getattr(kind, key)}"
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
    renamed = _RENAMED.get(name)
    if what == "key" and renamed in names:
        raise RecipeError(f'{where}: unknown key "{name}"; it is now called "{renamed}"')
    (nearest,) = get_close_matches(name, names, n=1, cutoff=0.0)
    of_kinds = [kind for kind, settings in SETTINGS.items() if name in _hints(settings)]
    if what == "key" and "kind" in names and of_kinds:
        kinds = " and ".join(of_kinds)
        raise RecipeError(f'{where}: unknown key "{name}"; students of kind {kinds} have it')
    elsewhere = [
        table
        for table, kinds in _TABLES.items()
        if any((renamed or name) in _hints(kind) for kind in kinds)
    ]
    if what == "key" and elsewhere:
        called = f', where it is called "{renamed}"' if renamed else ""
        raise RecipeError(f'{where}: unknown key "{name}"; it belongs to [{elsewhere[0]}]{called}')
    raise RecipeError(f'{where}: unknown {what} "{name}"; the nearest is "{nearest}"')
