"""The kinds of students, by name, and what all their settings have.

A new kind is registered here: its settings in ``SETTINGS``, the rest in the module of its name
beside this file. Imports nothing heavy, so that a wrong recipe is refused at once.
"""

from typing import Any, ClassVar, Protocol

from stages.train_student.modeling.distil_xlstm.settings import DistilXLSTMSettings


class StudentSettings(Protocol):
    """A frozen dataclass: ``[train_student.student]`` of a recipe, for one kind."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    weight_keys: ClassVar[tuple[str, ...]]
    """The settings that weights must share to fit, which a model's config.json holds too."""
    speed_keys: ClassVar[frozenset[str]]
    """The settings that shape no result, and may change when a run is resumed."""

    @property
    def kind(self) -> str:
        """The name in ``SETTINGS``, which is also the ``model_type`` of a model's config.json."""

    @property
    def train_head(self) -> bool:
        """Whether the head is trained; a frozen one is the teacher's."""


SETTINGS: dict[str, type[StudentSettings]] = {"distil_xlstm": DistilXLSTMSettings}
DEFAULT_KIND = "distil_xlstm"
