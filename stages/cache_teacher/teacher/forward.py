"""One forward pass of the teacher becomes rows: body, head, targets, sketch.

In: some rows of a unit. Out: ``PendingRows``, whose ``rows`` waits for what the device has been
given and brings it into the cache's form. ``launch`` only queues work on a GPU: nothing in it waits
for a result, so the device has its next batch before anyone has looked at this one. B rows of a
forward pass, T positions, P of them scored, M uniform numbers of each, D width, d
sketch.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cache_format.codec.row_codec import Row
from cache_format.metadata.spec import CacheSpec
from cache_format.tables.shared_files import SharedFiles
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.targets.hidden_projection import UnitSketch
from stages.cache_teacher.targets.kind import Targets
from stages.cache_teacher.targets.kinds import kind_of
from stages.cache_teacher.targets.sampling import uniform_numbers
from stages.cache_teacher.targets.spreading import spread
from stages.cache_teacher.teacher.device_queue import DeviceClock, to_device, to_host
from stages.cache_teacher.teacher.teacher import Teacher


class TeacherStep:
    """A teacher, and how its hidden states become targets. One thread at a time may launch."""

    def __init__(
        self,
        teacher: Teacher,
        spec: CacheSpec,
        config: CacheTeacherConfig,
        shared: SharedFiles,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """``check`` is called many times in a forward pass, and may raise to abandon it."""
        self._teacher, self._spec, self._shared = teacher, spec, shared
        self._check = check
        self._kind = kind_of(spec.targets)
        self.maker = self._kind.make_maker(
            teacher.head, spec.targets, shared, chunk=config.head_chunk, compile=config.compile
        )
        self._sketch: tuple[int, UnitSketch] | None = None

    def compile(self) -> None:
        """Compile what is compiled, which takes a while, before there is anything to launch."""
        self.maker.compile(self._kind.num_uniform(self._spec.targets))

    @torch.inference_mode()
    def launch(self, batch: PackedUnit, unit: int, first_row: int) -> "PendingRows":
        """Give the device some rows of ``unit``, the first of which is its row ``first_row``."""
        clock = DeviceClock(self._teacher.device)
        hidden_BTD, layers_BTD = self._teacher.forward(
            batch.token_ids_RT[:, :-1],
            batch.document_starts,
            layers=self._sketch_of(unit).layers,
            check=self._check,
        )
        return self._launch(batch, unit, first_row, (hidden_BTD, layers_BTD), clock)

    @torch.inference_mode()
    def launch_states(
        self, batch: PackedUnit, unit: int, first_row: int, hidden_BTD: Tensor
    ) -> "PendingRows":
        """``launch`` where the teacher's last hidden states are there, and no sketch is asked
        for."""
        clock = DeviceClock(self._teacher.device)
        return self._launch(batch, unit, first_row, (hidden_BTD, []), clock)

    def _launch(
        self,
        batch: PackedUnit,
        unit: int,
        first_row: int,
        states: tuple[Tensor, Sequence[Tensor]],
        clock: DeviceClock,
    ) -> "PendingRows":
        """Queue what is made of ``states``: the last hidden states and those of layers."""
        device, scored_BT = self._teacher.device, batch.scored_RT()
        hidden_BTD, layers_BTD = states
        index_P = to_device(np.flatnonzero(scored_BT), device)
        labels_P = batch.token_ids_RT[:, 1:][scored_BT].astype(np.int64)
        targets = self.maker.make(
            _at(hidden_BTD, index_P),
            to_device(labels_P, device),
            to_device(self._uniform(scored_BT, unit, first_row), device),
            self._check,
        )
        at_layers_PD = (_at(layer_BTD, index_P) for layer_BTD in layers_BTD)
        sketch_PLd = self._sketch_of(unit).of(at_layers_PD, len(labels_P))
        pending = PendingRows(
            batch,
            targets.mapped(to_host),
            to_host(sketch_PLd),
            self._spec,
            clock,
            f"unit {unit}",
            first_row,
        )
        clock.stop()
        return pending

    def _sketch_of(self, unit: int) -> UnitSketch:
        if self._sketch is None or self._sketch[0] != unit:
            place = partial(to_device, device=self._teacher.device)
            sketch = UnitSketch(self._spec, unit, self._shared.projection, place)
            self._sketch = (unit, sketch)
        return self._sketch[1]

    def _uniform(
        self, scored_BT: npt.NDArray[np.bool_], unit: int, first_row: int
    ) -> npt.NDArray[np.float64]:
        """The numbers that decide what is drawn at the scored positions, [P, M]; M may be 0."""
        num_uniform = self._kind.num_uniform(self._spec.targets)
        num_rows, num_positions = scored_BT.shape
        if not num_uniform:
            return np.empty((int(scored_BT.sum()), 0))
        rows = range(first_row, first_row + num_rows)
        return np.concatenate(
            [
                uniform_numbers(self._spec.seed, unit, row, num_positions, num_uniform)[scored_T]
                for row, scored_T in zip(rows, scored_BT, strict=True)
            ]
        )


class PendingRows:
    """Rows that the device is at work on."""

    def __init__(
        self,
        batch: PackedUnit,
        targets: Targets,
        sketch_PLd: Tensor,
        spec: CacheSpec,
        clock: DeviceClock,
        where: str,
        first_row: int,
    ) -> None:
        self._batch, self._targets, self._sketch_PLd, self._spec = batch, targets, sketch_PLd, spec
        self._clock, self._where, self._first_row = clock, where, first_row

    def rows(self) -> list[Row]:
        """The rows, once the device is done with them. May be called from any thread.

        Raises ValueError naming unit, row and position where a number is not finite.
        """
        self.wait()
        self._refuse_non_finite()
        rows = kind_of(self._spec.targets).rows(self._batch, self._targets)
        if not self._spec.sketch.dim:
            return rows
        sketch_BTLd = spread(self._sketch_PLd.numpy(), self._batch.scored_RT())
        return [replace(row, sketch=of_row) for row, of_row in zip(rows, sketch_BTLd, strict=True)]

    def wait(self) -> None:
        """Wait until the device is done with them."""
        self._clock.wait()

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to wait for: on a CPU, what was launched is done."""
        return not self._clock.is_gpu

    def device_seconds(self) -> float:
        """How long the device was busy with them; known after ``rows``."""
        return self._clock.seconds()

    def _refuse_non_finite(self) -> None:
        is_good_P = self._targets.is_finite_P & torch.isfinite(self._sketch_PLd).flatten(1).all(1)
        if bool(is_good_P.all()):
            return
        first = int((~is_good_P).nonzero()[0, 0])
        row, position = np.argwhere(self._batch.scored_RT())[first]
        raise ValueError(
            f"{self._where}, row {self._first_row + row}, position {position}: the teacher "
            f"produced NaN or infinity in {self._spec.teacher.dtype}. Try another teacher_dtype "
            "(float32, bfloat16); if it persists, the weights are damaged. Nothing of this unit "
            "was written."
        )


def _at(hidden_BTD: Tensor, index_P: Tensor) -> Tensor:
    """The hidden states of some positions, [P, D]."""
    return hidden_BTD.flatten(0, 1).index_select(0, index_P)
