"""One optimizer step: micro-batches forward and backward, the gradient clipped, AdamW.

In: a batch, the weights of the loss and the learning rate. Out: the step's figures. Under fp16 the
loss is scaled so that small gradients do not vanish, and a step whose gradient overflows is
skipped. What ``accumulate`` does may be abandoned: it changes no weight, moment or scale.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.loader import Step
from stages.train_student.distributed.context import DistributedContext
from stages.train_student.distributed.sharding import whole
from stages.train_student.losses.loss_term import LossNormalizer
from stages.train_student.losses.schedules import LearningRates
from stages.train_student.losses.terms import LossWeights
from stages.train_student.students.student import Student
from stages.train_student.trainer.rank_slice import ParallelLoss


class NonFiniteError(ValueError):
    """The loss or its gradient is NaN or infinite. ``name`` and ``value`` say which."""

    def __init__(self, name: str, value: float) -> None:
        super().__init__(f"the {name} is {value}")
        self.name, self.value = name, value


class Updater:
    """The optimizer of a student and, under fp16, its gradient scaler."""

    def __init__(
        self,
        student: Student,
        loss: ParallelLoss,
        config: TrainStudentConfig,
        context: DistributedContext,
        mixer_parameters: Collection[str] = (),
    ) -> None:
        """``mixer_parameters`` are the names of those with the learning rate of the mixers."""
        self._loss, self._config, self._context = loss, config, context
        trained = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
        self._trainable = [parameter for _, parameter in trained]
        self._device = self._trainable[0].device
        mixers = [parameter for name, parameter in trained if name in mixer_parameters]
        others = [parameter for name, parameter in trained if name not in mixer_parameters]
        self.optimizer = _adamw(config, others, mixers)
        self.scaler = torch.amp.GradScaler(self._device.type, enabled=config.precision == "fp16")

    def accumulate(
        self,
        step: Step,
        weights: LossWeights,
        normalizer: LossNormalizer,
        seeds: Iterable[int],
        check: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """The gradient of ``step``, this process's micro-batches; returns the sums of their values.

        ``seeds``: one for the dropout of each. ``check`` is called before each, and may raise.
        """
        sums = torch.zeros(len(self._loss.value_names), dtype=torch.float64, device=self._device)
        for number, (batch, seed) in enumerate(zip(step, seeds, strict=True), start=1):
            check()
            torch.manual_seed(seed)
            loss, values = self._loss(batch, weights, normalizer, is_last=number == len(step))
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            sums += values
        return sums

    def update(self, sums: Tensor, rates: LearningRates) -> dict[str, float]:
        """Take the optimizer's step along what was accumulated; returns the step's figures.

        They are the loss and its terms, means over the step in nats, by their names, and
        ``gradient_norm``, the gradient's before clipping.

        Raises NonFiniteError where the loss is NaN or infinite, or its gradient is and no smaller
        scale can help; no weight has been touched then.
        """
        self.scaler.unscale_(self.optimizer)
        norm = whole(torch.nn.utils.clip_grad_norm_(self._trainable, self._config.max_grad_norm))
        figures = self._figures(sums, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rates.mixer if group["is_mixer"] else rates.base
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return figures

    def _figures(self, sums: Tensor, norm: Tensor) -> dict[str, float]:
        """Waits for the device, the only time in a step."""
        *own, gradient_norm = torch.cat([sums, norm.double()[None]]).tolist()
        figures = dict(zip(self._loss.value_names, self._context.sum(own), strict=True))
        _require_finite("loss", figures["loss"])
        # A step that overflowed in fp16 is skipped by the scaler, which then halves its scale; once
        # that cannot help any more, the gradient itself is not finite.
        if not (math.isfinite(gradient_norm) or self._a_smaller_scale_may_help()):
            _require_finite("gradient norm", gradient_norm)
        return {**figures, "gradient_norm": gradient_norm}

    def _a_smaller_scale_may_help(self) -> bool:
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1.0


def require_scaler_state(scaler: torch.amp.GradScaler, state: Mapping[str, Any]) -> None:
    """Raise ValueError unless ``state`` can be loaded into ``scaler``, and has a usable scale."""
    expected, found = (
        {name: type(value) for name, value in each.items()} for each in (scaler.state_dict(), state)
    )
    are_finite = found == expected and all(0 <= value < math.inf for value in state.values())
    if not (are_finite and state.get("scale", 1.0) > 0):
        raise ValueError(
            f"scaler: expected finite numbers {sorted(expected)}, found {dict(state)}."
        )


def _require_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise NonFiniteError(name, value)


def _adamw(
    config: TrainStudentConfig,
    others: Sequence[torch.nn.Parameter],
    mixers: Sequence[torch.nn.Parameter] = (),
) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only.

    Its moments are there from the start, as AdamW would begin them at its first step: so a
    checkpoint of any step has all of them, and one that lacks some is refused.
    """
    optimizer = torch.optim.AdamW(
        [*_groups(others, config, is_mixer=False), *_groups(mixers, config, is_mixer=True)],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        fused=True,
    )
    for parameter in (*others, *mixers):
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def _groups(
    parameters: Sequence[torch.nn.Parameter], config: TrainStudentConfig, *, is_mixer: bool
) -> list[dict[str, Any]]:
    """The groups of those that share a learning rate, which ``is_mixer`` tells."""
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    decays = ((matrices, config.weight_decay), (vectors, 0.0))
    return [
        {"params": group, "weight_decay": decay, "is_mixer": is_mixer}
        for group, decay in decays
        if group
    ]
