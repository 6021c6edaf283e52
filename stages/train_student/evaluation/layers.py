"""What goes on in the layers of a student that holds its teacher.

In: what was watched while the student computed a batch. Out: how far each layer with a mixer is
from the teacher's (``alignment``, in the unit of the loss of that name), and how much of a mixer's
output is the mLSTM's: 0 where the window gives all of it, 1 where the mLSTM does.

B rows, T positions.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.train_student.data.batch import Batch
from stages.train_student.evaluation.validation_metric import LayerFigures, ScoredPositions
from stages.train_student.losses.alignment import layer_errors
from stages.train_student.students.student import AlignableStudent, Student

_NUM_BINS = 1000


@dataclass(frozen=True)
class LayerWatch:
    """Watches the layers of one student."""

    model: Student
    compares: bool
    """Whether they are compared with the teacher's: only while its copies are as they were."""

    @contextmanager
    def gates(self) -> Iterator[dict[int, Tensor]]:
        """A block in which the output gates of what ``model`` computes are kept, by layer."""
        kept: dict[int, Tensor] = {}

        def keep(index: int) -> Any:
            def hook(gate: torch.nn.Module, inputs: Any, output: Tensor) -> None:
                kept[index] = output.float().sigmoid()

            return hook

        with ExitStack() as stack:
            if isinstance(self.model, AlignableStudent):
                for index, gate in self.model.output_gates.items():
                    stack.callback(gate.register_forward_hook(keep(index)).remove)
            yield kept

    def figures(
        self, batch: Batch, gates: Mapping[int, Tensor], dtype: torch.dtype
    ) -> LayerFigures | None:
        """What was found of ``batch``; None of a student that does not hold its teacher."""
        if not isinstance(self.model, AlignableStudent):
            return None
        errors: dict[int, Tensor] = {}
        if self.compares:
            found_L = layer_errors(self.model, batch, dtype)
            errors = dict(zip(self.model.converted_layers, found_L, strict=True))
        return LayerFigures(errors=errors, gates=gates, num_positions=batch.input_ids.numel())


class LayerAlignments:
    """``alignment``, the mean over layers, and ``alignment_layer_NN`` of each."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}
        self._num_positions = 0

    def add(self, positions: ScoredPositions) -> None:
        """See ``ValidationMetric``."""
        layers = positions.layers
        if layers is None or not layers.errors:
            return
        for index, error in layers.errors.items():
            self._sums[index] = self._sums.get(index, torch.zeros(())) + error.double().cpu()
        self._num_positions += layers.num_positions

    def merge(self, other: "LayerAlignments") -> None:
        """See ``ValidationMetric``."""
        for index, error in other._sums.items():
            self._sums[index] = self._sums.get(index, torch.zeros(())) + error
        self._num_positions += other._num_positions

    def values(self) -> dict[str, float]:
        """See ``ValidationMetric``."""
        means = {index: float(total) / self._num_positions for index, total in self._sums.items()}
        if not means:
            return {}
        by_layer = {f"alignment_layer_{index:02}": mean for index, mean in means.items()}
        return {"alignment": sum(means.values()) / len(means), **by_layer}


class OutputGates:
    """``mlstm_share``, the mean output gate, and ``output_gate_layer_NN``, each layer's median.

    Over positions and heads; the median to a thousandth.
    """

    def __init__(self) -> None:
        self._counts: dict[int, Tensor] = {}
        self._sum, self._num_gates = torch.zeros((), dtype=torch.float64), 0

    def add(self, positions: ScoredPositions) -> None:
        """See ``ValidationMetric``."""
        for index, gate in (positions.layers.gates if positions.layers else {}).items():
            counts = torch.histc(gate, bins=_NUM_BINS, min=0.0, max=1.0).double().cpu()
            self._counts[index] = self._counts.get(index, torch.zeros(())) + counts
            self._sum += gate.double().sum().cpu()
            self._num_gates += gate.numel()

    def merge(self, other: "OutputGates") -> None:
        """See ``ValidationMetric``."""
        for index, counts in other._counts.items():
            self._counts[index] = self._counts.get(index, torch.zeros(())) + counts
        self._sum += other._sum
        self._num_gates += other._num_gates

    def values(self) -> dict[str, float]:
        """See ``ValidationMetric``."""
        if not self._num_gates:
            return {}
        share = float(self._sum) / self._num_gates
        medians = {index: _median(counts) for index, counts in self._counts.items()}
        by_layer = {f"output_gate_layer_{index:02}": median for index, median in medians.items()}
        return {"mlstm_share": share, **by_layer}


def _median(counts: Tensor) -> float:
    """The middle of the bin that half of what is counted lies in or below."""
    below = counts.cumsum(0)
    return (float(torch.searchsorted(below, below[-1:] / 2)) + 0.5) / len(counts)
