"""The k largest logits of a position as in ``top_k``, and its last hidden state as in ``hidden``.

P positions of a forward pass, D width, M uniform numbers, none here.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

from torch import Tensor

from cache_format.codec.row import Row
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.tables.shared_files import SharedFiles
from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.targets import hidden, top_k
from stages.cache_teacher.targets.difference import Difference
from stages.cache_teacher.targets.hidden import CoefficientMaker, HiddenTargets
from stages.cache_teacher.targets.target_maker import IdTargets, TargetMaker
from stages.cache_teacher.targets.teacher_head import Head

num_uniform = top_k.num_uniform


class BothTargets(NamedTuple):
    """Targets of P positions."""

    ids: IdTargets
    states: HiddenTargets

    @property
    def is_finite_P(self) -> Tensor:
        """bool, whether all numbers of a position are."""
        return self.ids.is_finite_P & self.states.is_finite_P

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "BothTargets":
        """The same with each tensor as ``function`` returns it."""
        return BothTargets(self.ids.mapped(function), self.states.mapped(function))


class BothMaker(NamedTuple):
    """Makes kept logits and coefficients of the same states."""

    of_ids: TargetMaker
    of_states: CoefficientMaker

    def compile(self, num_uniform: int) -> None:
        """See ``Maker``."""
        self.of_ids.compile(num_uniform)

    def make(
        self,
        hidden_PD: Tensor,
        labels_P: Tensor,
        uniform_PM: Tensor,
        check: Callable[[], None] = lambda: None,
    ) -> BothTargets:
        """See ``Maker``."""
        arguments = (hidden_PD, labels_P, uniform_PM, check)
        return BothTargets(self.of_ids.make(*arguments), self.of_states.make(*arguments))


def make_maker(
    head: Head,
    spec: TargetSpec,
    shared: SharedFiles,
    *,
    chunk: int,
    compile: Literal["auto", "on", "off"],
) -> BothMaker:
    """See ``TargetKind.make_maker``."""
    of_ids = top_k.make_maker(head, spec, shared, chunk=chunk, compile=compile)
    return BothMaker(of_ids, CoefficientMaker(shared.hidden_transform, head.device))


def rows(batch: PackedUnit, targets: BothTargets) -> list[Row]:
    """See ``TargetKind.rows``."""
    both = zip(top_k.rows(batch, targets.ids), hidden.rows(batch, targets.states), strict=True)
    return [replace(row, coefficients=other.coefficients) for row, other in both]


def differences(stored: Row, made: Row, spec: TargetSpec, number: int) -> Iterator[Difference]:
    """Those of the logits; what the states add, these would show."""
    return top_k.differences(stored, made, spec, number)
