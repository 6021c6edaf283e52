"""Training steps of a hybrid student: its alignment, and all weights by sparse targets.

In: a teacher, the student's settings and row lengths. Out: figures. A step is forward, backward and
the optimizer's update, of one row.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.alternating import median_seconds, peak_allocated_bytes
from benchmarks.hybrid.models import Place, convert
from benchmarks.loss import Size, make_inputs
from benchmarks.progress import Done
from stages.train_student.losses.sparse_kl import SparseDistillationLoss
from stages.train_student.losses.vocabulary_pass import VocabularyWeights
from stages.train_student.modeling.hybrid_xlstm.settings import HybridXLSTMSettings

_WEIGHTING = VocabularyWeights(cross_entropy=0.9, kl=0.1, temperature=1.0)
_TOKENS_AS_LONG = 4  # of a prompt, as one that is trained on
_CHUNK = 256
_WARM_UP = 32  # positions of a step that makes gradients and the optimizer's state
_SPEED = {"training": "train_tokens_per_s", "alignment": "align_tokens_per_s"}


def training(
    teacher: Any,
    settings: HybridXLSTMSettings,
    place: Place,
    lengths: Sequence[int],
    repeats: int,
    done: Done,
) -> dict[str, Any]:
    """Figures of ``settings``, in which all is trained, and of their alignment.

    The work that ``done`` is told of is that of so many tokens of a prompt.
    """
    first, last = min(lengths), max(lengths)
    trained: dict[str, _Step] = {"training": _Distillation(convert(teacher, settings), place, last)}
    if trained["training"].student.converted_layers:
        aligned = convert(teacher, replace(settings, trained="new"))
        trained["alignment"] = _Alignment(aligned, place)
    peak: dict[tuple[str, int], int] = {}
    for name, step in trained.items():
        step(_WARM_UP)
        for length in (first, last):
            peak[name, length] = peak_allocated_bytes(
                lambda step=step, n=length: step(n),  # type: ignore[misc]
                place.device,
            )
            done(f"memory of {name}", _TOKENS_AS_LONG * length)
    median = median_seconds(
        {name: lambda step=step: step(last) for name, step in trained.items()},  # type: ignore[misc]
        repeats,
        lambda name: done(name, _TOKENS_AS_LONG * last),
        place.device,
    )
    figures: dict[str, Any] = {}
    for name in trained:
        figures[f"peak_bytes_ratio_{name}"] = round(peak[name, last] / peak[name, first], 3)
        figures[f"peak_bytes_{name}"] = peak[name, last]
        figures[_SPEED[name]] = round(last / median[name])
    return figures


class _Step(ABC):
    """A step of one row of random ids."""

    def __init__(self, student: Any, place: Place) -> None:
        self.student, self.place = student.to(place.device).train(), place
        parameters = [p for p in student.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)  # as the trainer's

    def __call__(self, length: int) -> None:
        vocab_size, device = self.student.config.vocab_size, self.place.device
        input_ids_1T = torch.randint(vocab_size, (1, length), device=device)
        self._optimizer.zero_grad(set_to_none=False)
        self.loss(input_ids_1T).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    @abstractmethod
    def loss(self, input_ids_1T: Tensor) -> Tensor:
        """What the step lowers."""


class _Alignment(_Step):
    def loss(self, input_ids_1T: Tensor) -> Tensor:
        with self.place.autocast():
            found: Tensor = self.student.alignment(input_ids_1T).errors_LBT.mean()
        return found


class _Distillation(_Step):
    """Labels and KL over k = 256 kept ids, or fewer of a small vocabulary."""

    def __init__(self, student: Any, place: Place, most: int) -> None:
        super().__init__(student, place)
        config = student.config
        size = Size(
            tokens=most,
            vocabulary=config.vocab_size,
            width=8,  # of hidden states that are not used
            top_k=min(256, config.vocab_size // 4),
            chunk=_CHUNK,
            moment_dim=1,
            precision="fp32" if place.dtype == torch.float32 else "bf16",
            device=str(place.device),
        )
        self._inputs = make_inputs(size)
        self._loss = SparseDistillationLoss(
            chunk=_CHUNK, dtype=place.dtype, compile="off", device=place.device
        )

    def loss(self, input_ids_1T: Tensor) -> Tensor:
        with self.place.autocast():
            hidden_ND = self.student.hidden_states(input_ids_1T)[0]
        length = len(hidden_ND)
        head_VD = self.student.lm_head.weight
        labels_N, targets = self._inputs.labels_N[:length], self._inputs.targets.chunk(0, length)
        return self._loss(hidden_ND, head_VD, labels_N, targets, _WEIGHTING).weighted
