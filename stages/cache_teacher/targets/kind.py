"""The interface of a target kind in stage one. Each kind is a module, see ``kinds.py``.

P scored positions of a forward pass, D width, M uniform numbers of a position.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

from torch import Tensor

from cache_format.codec.row_codec import Row
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.tables.shared_files import SharedFiles
from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.targets.difference import Difference
from stages.cache_teacher.targets.teacher_head import Head


class Targets(Protocol):
    """What a kind keeps of P positions, in tensors whose first dimension is P."""

    @property
    def is_finite_P(self) -> Tensor:
        """bool, whether all numbers of a position are."""

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "Targets":
        """The same with each tensor as ``function`` returns it."""


class Maker(Protocol):
    """Turns hidden states into targets, on their device."""

    def compile(self, num_uniform: int) -> None:
        """Compile now what ``make`` would compile when it is first called, if it is to be."""

    def make(
        self,
        hidden_PD: Tensor,
        labels_P: Tensor,
        uniform_PM: Tensor,
        check: Callable[[], None] = ...,
    ) -> Targets:
        """The targets of P positions; ``check`` is called often, and may raise."""


class TargetKind(Protocol):
    """One kind of target."""

    def num_uniform(self, spec: TargetSpec) -> int:
        """M: how many uniform numbers a position takes; 0 where nothing is drawn."""

    def make_maker(
        self,
        head: Head,
        spec: TargetSpec,
        shared: SharedFiles,
        *,
        chunk: int,
        compile: Literal["auto", "on", "off"],
    ) -> Maker:
        """What makes the targets of a cache with these files. ``chunk`` positions may have full
        logits at once."""

    def rows(self, batch: PackedUnit, targets: Any) -> list[Row]:
        """The rows of ``batch``, without sketches, given their ``Targets`` in the host's memory."""

    def differences(
        self, stored: Row, made: Row, spec: TargetSpec, number: int
    ) -> Iterator[Difference]:
        """What row ``number`` of a cache holds beside what was made of it now, but for the next
        tokens' log-probabilities, which are compared wherever they are stored."""
