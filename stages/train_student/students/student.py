"""What stage two asks of a student, and of a kind of students.

A student is a Hugging Face causal language model around its teacher's embedding and head. Whatever
differs between architectures is asked of its kind, which ``student_kind`` finds by name.

Shapes: B batch, T positions, D width, R rows of the head (padding included).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn


class StudentModelConfig(Protocol):
    """What the rest reads from a student's ``config.json``, and writes into it."""

    model_type: str
    """The name of its kind."""
    hidden_size: int
    head_rows: int
    teacher: dict[str, str] | None
    """Source, revision and hashes of the teacher that it learned from."""
    cache_id: str | None
    """The cache that it learned from; of several, a hash of their ids, see ``name_caches``."""
    num_steps: int | None
    """Optimizer steps that it was trained for."""


class Student(Protocol):
    """A student, for the loss, the optimizer and checkpoints."""

    training: bool

    @property
    def config(self) -> StudentModelConfig:
        """What ``config.json`` holds."""

    @property
    def lm_head(self) -> nn.Linear:
        """The head, [R, D], trained or not."""

    def hidden_states(self, input_ids: Tensor, is_document_start: Tensor | None = None) -> Tensor:
        """States after the final norm, [B, T, D], that the head is applied to.

        ``is_document_start`` is bool [B, T], True where a document begins; index 0 always does.
        """

    def parameters(self) -> Iterator[nn.Parameter]:
        """All of them, frozen ones included."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All of them, by name."""

    def state_dict(self) -> dict[str, Any]:
        """All weights, tied ones under each of their names."""

    def train(self, mode: bool = True) -> Any:
        """Whether dropout is on."""

    @property
    def to(self) -> Callable[..., Any]:
        """Moves it to a device, as a module's method does."""

    def save_pretrained(self, save_directory: Any) -> None:
        """Write ``config.json``, weights and what else finds the classes again."""


def name_caches(
    config: StudentModelConfig, cache_id: str | None, several: Sequence[str] | None
) -> None:
    """Make ``config`` name the cache of its student and, only where there are several, all ids."""
    config.cache_id = cache_id
    if several is not None:
        config.cache_ids = list(several)  # type: ignore[attr-defined]


def named_caches(config: StudentModelConfig) -> tuple[str | None, ...]:
    """The ids of all caches that a student learned from."""
    return tuple(getattr(config, "cache_ids", None) or (config.cache_id,))


def name_origin(config: StudentModelConfig, origin_sha256: str | None) -> None:
    """Make ``config`` name the weights that its student began with, if they are known."""
    if origin_sha256 is not None:
        config.origin_sha256 = origin_sha256  # type: ignore[attr-defined]


def named_origin(config: StudentModelConfig) -> str | None:
    """The hash of the trained weights that a student began with; None where it is not known."""
    return getattr(config, "origin_sha256", None)


class LayerAlignment(Protocol):
    """How far a student's layers are from those of its teacher that they replace."""

    @property
    def errors_LBT(self) -> Tensor:
        """float32: of each layer with new weights, ‖teacher's − student's‖² of what all heads give
        before the output projection, from the teacher's inputs. Only new weights have gradients."""


class LayerStates(Protocol):
    """What a student's layers give, beside the states after its final norm."""

    @property
    def hidden_BTD(self) -> Tensor:
        """As of ``hidden_states``."""

    @property
    def layers_BTD(self) -> tuple[Tensor, ...]:
        """Of the layers that were asked for, in their order."""


@runtime_checkable
class AlignableStudent(Student, Protocol):
    """A student that holds its teacher, whose layers it can be compared with."""

    @property
    def num_layers(self) -> int:
        """As many as its teacher has."""

    @property
    def attention_width(self) -> int:
        """Numbers that all heads of a layer give at a position."""

    @property
    def converted_layers(self) -> list[int]:
        """Indices of the layers that ``alignment`` compares."""

    @property
    def output_gates(self) -> dict[int, nn.Module]:
        """By layer: gives the pre-activation of the gate between window (0) and mLSTM (1)."""

    def alignment(
        self, input_ids: Tensor, is_document_start: Tensor | None = None
    ) -> LayerAlignment:
        """Teacher and student in each layer, from what the teacher's layer gets; documents as in
        ``hidden_states``."""

    def layer_states(
        self, input_ids: Tensor, is_document_start: Tensor | None, layers: tuple[int, ...]
    ) -> LayerStates:
        """``hidden_states``, and on the way what ``layers`` (rising, from 1) give the next one.

        They are counted as in a cache: the last gives the state after the final norm.
        """


@dataclass(frozen=True, kw_only=True)
class TeacherWeights:
    """All weights of a teacher, in a model directory that has been checked."""

    config: Mapping[str, Any]
    """Its ``config.json``."""
    directory: Path
    """Has ``model.safetensors``, or an index and its parts (see ``weight_files``)."""


@dataclass(frozen=True, kw_only=True)
class TeacherParts:
    """What a student takes over from its teacher: weights [R, D], and sizes."""

    hidden_size: int
    vocab_size: int
    """Ids that take part in the softmax; the head's other rows are padding."""
    head_rows: int
    eos_token_id: int | None
    embedding: Tensor | None
    """None leaves a random one, to measure with."""
    head: Tensor | None
    """None where it is tied to the embedding."""
    weights: TeacherWeights | None = None
    """All weights, for a kind that holds its teacher, which then gets no embedding and no head."""


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How FSDP spreads a student over processes."""

    root: nn.Module
    """The student itself."""
    units: Sequence[nn.Module]
    """Modules that are whole only while they run."""
    forward_method: str
    """The method of ``root`` that reads all weights of a training step, the head's aside."""


@dataclass(frozen=True, kw_only=True)
class DirectoryCode:
    """The code that a model directory carries, for ``trust_remote_code=True``."""

    auto_map: Mapping[str, str]
    """What names its classes in config.json."""
    files: Mapping[str, str]
    """Source text by the name of the file."""


Settings = TypeVar("Settings", contravariant=True)
Model = TypeVar("Model")


class StudentKind(Protocol[Settings, Model]):
    """One architecture: how a student is made, spread, counted, described and read back."""

    @property
    def config_class(self) -> Any:
        """The class of its config; a ``StudentModelConfig`` with the settings' ``weight_keys``."""

    @property
    def model_class(self) -> Any:
        """The class of its models, made from a config; a ``Student``."""

    @property
    def stored_settings(self) -> Mapping[str, Callable[[object], bool]]:
        """Settings that a config.json may have beside those of all kinds, and which values."""

    def stored_problem(self, key: str, value: object) -> str:
        """What is wrong inside the ``value`` of such a setting; empty if it is plain to see."""

    def row_warning(self, settings: Settings, sequence_length: int) -> str:
        """What rows of ``sequence_length`` positions leave unused of a student; mostly empty."""

    @property
    def directory_code(self) -> DirectoryCode:
        """The code that ``save_pretrained`` writes beside the weights."""

    def build(self, settings: Settings, teacher: TeacherParts, seed: int) -> Model:
        """A new student, its random weights a function of ``seed`` alone.

        Raises ValueError where settings or shapes do not fit.
        """

    def publishable(self, model: Model) -> Model:
        """``model`` with plain weights alone, as its ``model_class`` reads them; mostly itself."""

    def prepare(self, settings: Settings, model: Model, device: torch.device) -> str:
        """Choose what computes the model on ``device``; says what that is, if it is a choice.

        Raises ValueError where the settings ask for what the device cannot do.
        """

    def sharding(self, model: Model) -> Sharding:
        """What FSDP spreads."""

    def mixer_parameters(self, model: Model) -> frozenset[str]:
        """Names of the parameters that the teacher does not have, where a student holds the rest;
        none of a student that is new as a whole. They have ``mixer_learning_rate``."""

    def operations_per_token(self, model: Model) -> float:
        """Floating-point operations of one token, forward and backward, by the definition."""

    def description(self, model: Model) -> str:
        """The model in half a sentence: layers, width, parameters, source."""

    def blocks_differ(self, settings: Any, weights: Iterable[str]) -> str:
        """What is wrong where ``weights``, by name, are of another number of blocks; else "".

        ``settings`` are a recipe's or a config.json's. To be asked before as many are made.
        """
