"""The kinds of students, by name, and what all their settings have.

A new kind is registered here: its settings in ``SETTINGS``, the rest in the module of its name
beside this file. Imports nothing heavy, so that a wrong recipe is refused at once.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from stages.train_student.modeling.distil_xlstm.settings import DistilXLSTMSettings
from stages.train_student.modeling.hybrid_xlstm.settings import HybridXLSTMSettings

if TYPE_CHECKING:
    from stages.train_student.students.student import StudentKind


class StudentSettings(Protocol):
    """A frozen dataclass: ``[train_student.student]`` of a recipe, for one kind."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    weight_keys: ClassVar[tuple[str, ...]]
    """The settings that weights must share to fit, which a model's config.json holds too."""
    speed_keys: ClassVar[frozenset[str]]
    """The settings that shape no result, and may change when a run is resumed."""
    holds_teacher: ClassVar[bool]
    """Whether a student holds all of its teacher's weights, and new ones in some layers: those can
    be aligned with the teacher's layers, and have a learning rate of their own."""

    @property
    def kind(self) -> str:
        """The name in ``SETTINGS``, which is also the ``model_type`` of a model's config.json."""

    @property
    def train_head(self) -> bool:
        """Whether the head is trained; a frozen one is the teacher's."""

    @property
    def trains_new_alone(self) -> bool:
        """Whether all that a student holds of its teacher is left as it is."""

    @property
    def extra_packages(self) -> Mapping[str, str]:
        """Packages beside the dependencies that training needs, by the setting that needs them."""


SETTINGS: dict[str, type[StudentSettings]] = {
    "distil_xlstm": DistilXLSTMSettings,
    "hybrid_xlstm": HybridXLSTMSettings,
}
DEFAULT_KIND = "distil_xlstm"


def student_settings(kind: str = DEFAULT_KIND, **settings: Any) -> StudentSettings:
    """The settings of a student; those that are left out have their defaults.

    Raises ValueError for a kind that there is not, or a value that cannot be, and TypeError for a
    setting that the kind does not have.
    """
    return settings_class(kind)(**settings)


def settings_class(kind: object) -> type[StudentSettings]:
    """The class of the settings of ``kind``. Raises ValueError where there is no such kind."""
    if not (isinstance(kind, str) and kind in SETTINGS):
        known = ", ".join(f'"{name}"' for name in SETTINGS)
        raise ValueError(f"unknown kind {kind!r}; the known ones are {known}")
    return SETTINGS[kind]


def student_kind(kind: str) -> "StudentKind[Any, Any]":
    """What is to be asked about students of ``kind``. Raises ValueError where there is none."""
    settings_class(kind)
    found: StudentKind[Any, Any] = import_module(f"{__package__}.{kind}").KIND
    return found
