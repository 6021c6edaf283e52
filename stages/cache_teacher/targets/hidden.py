"""The last hidden state of a position, as whole coefficients of the cache's transform.

From the state and the head stage two rebuilds every logit. The head is not run where coefficients
are rounded to the nearest.

P positions of a forward pass, D width, J components; B rows, T positions of a row.
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cache_format.codec.row import Row
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.tables.hidden_transform import HiddenTransform
from cache_format.tables.shared_files import SharedFiles
from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.targets.coded.analysis import Analysis
from stages.cache_teacher.targets.coded.rate_distortion import RateDistortion
from stages.cache_teacher.targets.difference import Difference
from stages.cache_teacher.targets.spreading import spread
from stages.cache_teacher.targets.teacher_head import Head


class HiddenTargets(NamedTuple):
    """Coefficients of P positions."""

    coefficients_PJ: Tensor
    """int16"""
    is_finite_P: Tensor
    """bool, whether all numbers of a position's state are."""

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "HiddenTargets":
        """The same with each tensor as ``function`` returns it."""
        return HiddenTargets(*map(function, self))


class CoefficientMaker:
    """Turns hidden states into coefficients, on their device: the nearest whole numbers."""

    def __init__(self, transform: HiddenTransform, device: torch.device) -> None:
        self._analysis = Analysis(transform, device)

    def compile(self, num_uniform: int) -> None:
        """Nothing is compiled."""

    @torch.inference_mode()
    def make(
        self,
        hidden_PD: Tensor,
        labels_P: Tensor,
        uniform_PM: Tensor,
        check: Callable[[], None] = lambda: None,
    ) -> HiddenTargets:
        """See ``Maker``."""
        del uniform_PM
        check()
        values_PJ, is_finite_P = self._analysis(hidden_PD)
        numbers_PJ = self._whole(values_PJ, hidden_PD, labels_P, check)
        return HiddenTargets(numbers_PJ.to(torch.int16), is_finite_P)

    def _whole(
        self, values_PJ: Tensor, hidden_PD: Tensor, labels_P: Tensor, check: Callable[[], None]
    ) -> Tensor:
        """Whole numbers for the coefficients."""
        del hidden_PD, labels_P, check
        return values_PJ.round_()


class SearchingMaker(CoefficientMaker):
    """Coefficients that lose least for the bytes they take; see ``rate_distortion``."""

    def __init__(
        self,
        transform: HiddenTransform,
        step: float,
        head: Head,
        *,
        chunk: int,
        compile: Literal["auto", "on", "off"],
    ) -> None:
        super().__init__(transform, head.device)
        synthesis_JD = torch.from_numpy(transform.synthesis) / step
        self._search = RateDistortion(head, synthesis_JD, chunk=chunk, compile=compile)
        self._prices_LJX = torch.from_numpy(transform.code.prices()).to(head.device)

    def compile(self, num_uniform: int) -> None:
        """See ``Maker``."""
        del num_uniform
        self._search.compile()

    def _whole(
        self, values_PJ: Tensor, hidden_PD: Tensor, labels_P: Tensor, check: Callable[[], None]
    ) -> Tensor:
        logits = self._search.largest(hidden_PD, labels_P, check)
        return self._search.coefficients(values_PJ, logits, self._prices_LJX, check)


def num_uniform(spec: TargetSpec) -> int:
    """Nothing is drawn."""
    del spec
    return 0


def make_maker(
    head: Head,
    spec: TargetSpec,
    shared: SharedFiles,
    *,
    chunk: int,
    compile: Literal["auto", "on", "off"],
) -> CoefficientMaker:
    """See ``TargetKind.make_maker``."""
    transform, states = shared.hidden_transform, spec.states
    if states.quantization == "nearest":
        return CoefficientMaker(transform, head.device)
    return SearchingMaker(transform, states.step, head, chunk=chunk, compile=compile)


def rows(batch: PackedUnit, targets: HiddenTargets) -> list[Row]:
    """See ``TargetKind.rows``."""
    coefficients_BTJ = spread(targets.coefficients_PJ.numpy(), batch.scored_RT())
    return [
        Row(
            token_ids=batch.token_ids_RT[row],
            document_starts=starts,
            is_context=batch.context_of(row),
            coefficients=coefficients_BTJ[row],
        )
        for row, starts in enumerate(batch.document_starts)
    ]


def differences(stored: Row, made: Row, spec: TargetSpec, number: int) -> Iterator[Difference]:
    """An estimate, in nats, of how far two states are apart at each position.

    Of a difference that is small beside the step, only the few coefficients near a boundary show
    anything, and their share is that of the difference in the step. So step · Σ|a − b| estimates
    its sum over components without bias, and divided by √J its norm if it is spread over all.
    """
    assert stored.coefficients is not None
    assert made.coefficients is not None
    root = math.sqrt(spec.states.num_components)
    apart_TJ = np.abs(stored.coefficients.astype(np.int64) - made.coefficients)
    for t in np.flatnonzero(stored.scored()):
        yield Difference(
            row=number,
            position=int(t),
            what="the distance to the hidden state",
            stored=0.0,
            made=float(apart_TJ[t].sum() * spec.states.step / root),
            rounding=3 * spec.states.step / root,
            is_averaged=True,
        )
