"""What each kind of target takes, loses and teaches, for the teacher and the text of a recipe.

In: the settings of stage one. Out: a ``Comparison``. Rows are made by stage one and pass through
the codec; transforms are fitted to other rows than those measured.

The student whose gradient is taken is the teacher itself with a short context. It is wrong as
students are, in the tail too, and needs no training.

N positions, V vocabulary, D width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.targets import KL_TEMPERATURES
from cache_format.threads import default_num_threads
from pipeline.comparison.compared import REFERENCE, Compared, compared_with
from pipeline.comparison.gradient_errors import GradientErrors, Student, gradient_errors
from pipeline.comparison.kept_rows import Keeping, KeptRows
from pipeline.comparison.probe import Probe, make_probe
from pipeline.comparison.self_kl import spread
from pipeline.comparison.teacher_rows import MadeRows, ShownRows
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.reporting.progress import CacheProgress
from stages.compute.device import current_device
from stages.train_student.data.targets.dense_targets import DenseTargets
from stages.train_student.data.temperatures import covers

_DRAWS = 4
"""Of the same rows, where ids are drawn."""
_CONTEXT_SHARE = 8
"""The student's context is a row's length over this."""


@dataclass(frozen=True, kw_only=True)
class TargetFigures:
    """One row of the table. Sequences are over ``KL_TEMPERATURES``, with None where the cache does
    not hold the temperature."""

    settings: Mapping[str, Any]
    is_recipe: bool
    bytes_per_token: float
    """Of the targets alone."""
    num_bytes: float
    """Of a cache of the recipe's budget: targets, tokens and sketch; not the teacher's files."""
    self_kl: list[float | None]
    """Nats, see ``self_kl.py``."""
    gradient: list[GradientErrors | None]
    relative_seconds: float | None
    """Of stage one, over those with ``REFERENCE``; None where the teacher has too few ids for
    that."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The table, and what it was measured on."""

    num_tokens: int
    """The recipe's budget."""
    num_positions: int
    student_context: int
    """Positions that the student sees at most."""
    student_kl: list[float]
    """KL(teacher ‖ student) at ``KL_TEMPERATURES``, nats."""
    rows: list[TargetFigures]


def compare_targets(
    config: CacheTeacherConfig,
    report: Callable[[CacheProgress], None],
    begun: Callable[[int, int, Compared], None],
) -> Comparison:
    """Measure every kind. No cache is written.

    ``report`` is told what comes before the first kind, ``begun`` of each kind its number, how many
    there are, and which it is. Raises what ``cache_teacher`` does, and ValueError where the corpus
    is too short.
    """
    probe = make_probe(config, report)
    with current_device(probe.source.teacher.device):
        return _Comparing(probe).compare(begun)


class _Comparing:
    """What all kinds are measured with."""

    def __init__(self, probe: Probe) -> None:
        self._probe, self._source = probe, probe.source
        teacher = self._source.teacher
        self._head_VD = teacher.head.weight_VD.float()
        self._shown = self._source.show(probe.measured)
        self._few = self._source.show(_first_rows(probe.measured, 2 * probe.num_positions))
        self._context = max(1, probe.config.sequence_length // _CONTEXT_SHARE)
        is_scored_RT, states_PD = self._few.packed.scored_RT(), self._few.scored_states()
        chosen_N = spread(len(states_PD), probe.num_positions)
        labels_P = torch.from_numpy(
            self._few.packed.token_ids_RT[:, 1:][is_scored_RT].astype(np.int64)
        )
        self._chosen_N = chosen_N.to(teacher.device)
        short = self._source.show(_with_context(self._few.packed, self._context))
        states_of_student_PD = _at(short, is_scored_RT)
        self._student = Student(
            states_of_student_PD[self._chosen_N],
            self._head_VD,
            labels_P[chosen_N].to(teacher.device),
        )
        whole = DenseTargets(states_PD[self._chosen_N], self._head_VD)
        self._true = [self._student.kl_gradient(whole, T) for T in KL_TEMPERATURES]

    def compare(self, begun: Callable[[int, int, Compared], None]) -> Comparison:
        """All rows of the table."""
        probe = self._probe
        compared = compared_with(probe.config, self._source.teacher.source.spec.vocab_size)
        others = self._others()
        seconds, rows = {}, []
        for number, one in enumerate(compared):
            begun(number, len(compared), one)
            figures, seconds[number] = self._measure(one, others)
            rows.append(figures)
        reference = [n for n, one in enumerate(compared) if one.settings == REFERENCE]
        if reference:
            rows = [
                replace(row, relative_seconds=seconds[number] / seconds[reference[0]])
                for number, row in enumerate(rows)
            ]
        return Comparison(
            num_tokens=probe.config.num_tokens,
            num_positions=len(self._chosen_N),
            student_context=self._context,
            student_kl=[kl for kl, _ in self._true],
            rows=rows,
        )

    def _measure(self, one: Compared, others: "_Others") -> tuple[TargetFigures, float]:
        """A row without its time, and the seconds that stage one takes for a token."""
        keeping = Keeping.fitted(self._source, _bare(one.config))
        gradient = self._gradient_errors(keeping)  # first, so that kernels are loaded below
        kept = keeping.rows(self._shown)
        bytes_per_token = kept.bytes_per_token
        figures = TargetFigures(
            settings=one.settings,
            is_recipe=one.is_recipe,
            bytes_per_token=bytes_per_token,
            num_bytes=(bytes_per_token + others.bytes_per_token) * self._probe.config.num_tokens,
            self_kl=kept.self_kl(self._head_VD, self._probe.num_positions),
            gradient=gradient,
            relative_seconds=None,
        )
        return figures, others.seconds_with(kept.made, self._shown.num_tokens)

    def _gradient_errors(self, keeping: Keeping) -> list[GradientErrors | None]:
        """At each temperature."""
        targets = keeping.spec.targets
        num_draws = 1 if targets.draws is None else _DRAWS
        drawn = [
            keeping.rows(self._few, unit).targets_at(self._head_VD)(self._chosen_N)
            for unit in range(1, num_draws + 1)
        ]
        found: list[GradientErrors | None] = []
        for temperature, (_, true_ND) in zip(KL_TEMPERATURES, self._true, strict=True):
            if not covers(targets.inverse_temperatures, temperature):
                found.append(None)
                continue
            gradients = [self._student.kl_gradient(one, temperature)[1] for one in drawn]
            found.append(gradient_errors(gradients, true_ND))
        return found

    def _others(self) -> "_Others":
        """What all kinds share, from some rows with the recipe's own targets and sketch."""
        config = replace(self._probe.config, compile="off")
        made_of = self._source.spec(config)
        whole = self._source.make_whole(self._few.packed, made_of, config)
        targets = Keeping.fitted(self._source, _bare(config)).rows(self._few)
        return _Others.of(whole, targets, made_of[0])


@dataclass(frozen=True)
class _Others:
    """Body and sketch of the teacher, and the columns that are no targets."""

    bytes_per_token: float
    device_seconds: float
    """For a token, as all that follows."""
    host_seconds: float
    is_gpu: bool

    @classmethod
    def of(cls, whole: MadeRows, targets: KeptRows, spec: CacheSpec) -> "_Others":
        """What ``whole`` has more than ``targets``, the same rows without body and sketch."""
        num_tokens = targets.shown.num_tokens
        num_bytes = sum(len(cell) for cells in whole.cells for cell in cells.values())
        return cls(
            bytes_per_token=num_bytes / num_tokens - targets.bytes_per_token,
            device_seconds=max(0.0, whole.device_seconds - targets.made.device_seconds)
            / num_tokens,
            host_seconds=max(0.0, whole.host_seconds - targets.made.host_seconds) / num_tokens,
            is_gpu=targets.shown.batches[0][1].is_cuda,
        )

    def seconds_with(self, made: MadeRows, num_tokens: int) -> float:
        """Of stage one for a token. Threads encode while a GPU is at the next rows; a CPU has both
        to do."""
        device = self.device_seconds + made.device_seconds / num_tokens
        host = (self.host_seconds + made.host_seconds / num_tokens) / default_num_threads()
        return max(device, host) if self.is_gpu else device + host


def _bare(config: CacheTeacherConfig) -> CacheTeacherConfig:
    """The targets alone. Compiling would take longer than all that is measured."""
    return replace(config, hidden_projection="none", compile="off")


def _first_rows(packed: PackedUnit, num_positions: int) -> PackedUnit:
    """The first rows that hold ``num_positions``, or all."""
    length = packed.token_ids_RT.shape[1] - 1
    return packed.rows(0, -(-num_positions // length))


def _with_context(packed: PackedUnit, context: int) -> PackedUnit:
    """The same rows, begun anew every ``context`` positions."""
    num_positions = packed.token_ids_RT.shape[1] - 1
    cuts = np.arange(context, num_positions, context)
    starts = [np.union1d(starts, cuts).astype(np.int32) for starts in packed.document_starts]
    return replace(packed, document_starts=starts)


def _at(shown: ShownRows, is_scored_RT: np.ndarray) -> Tensor:
    """Last hidden states where ``is_scored_RT``, whatever documents the rows now have, float32."""
    states_RTD = torch.cat([hidden_BTD for _, hidden_BTD in shown.batches])
    return states_RTD[torch.from_numpy(is_scored_RT).to(states_RTD.device)].float()
