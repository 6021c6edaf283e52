"""One micro-batch's loss, by one process or by several that share its gradient.

In: a student, its objective and how processes share. Out: the loss, whose ``backward`` leaves the
gradient of the whole step where the last micro-batch ends.

- ``ddp``: every process has all weights; gradients are averaged while they are computed.
- ``fsdp`` (FSDP2): weights, gradients and AdamW's moments of the blocks are spread over the
  processes, and a block is whole only while it runs. Embedding and head, which are frozen, are not
  spread. The weights of every micro-batch are gathered by all processes together, so all need
  equally many.

Both average over processes; a micro-batch's loss is its share of the whole step's, so it is
multiplied by their number first.
"""

from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from cache_format.errors import AdvisedError, NextStep
from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.batch import Batch
from stages.train_student.distributed.context import DistributedContext
from stages.train_student.losses.alignment import TrainingLoss
from stages.train_student.losses.loss_term import LossNormalizer
from stages.train_student.losses.terms import LossWeights
from stages.train_student.students.student import Sharding, Student


def require_processes(config: TrainStudentConfig, num_ranks: int) -> None:
    """Raise ValueError where a step's micro-batches cannot be dealt to so many processes."""
    num_micro_batches = config.gradient_accumulation_steps
    rows = config.batch_size * num_micro_batches
    is_even = num_micro_batches % num_ranks == 0
    if num_ranks <= num_micro_batches and (is_even or config.parallel == "ddp"):
        return
    if num_ranks > num_micro_batches:
        problem = f"a step has {num_micro_batches} micro-batches, fewer than {num_ranks} processes"
    else:
        problem = (
            f"{num_micro_batches} micro-batches cannot be divided evenly among {num_ranks} "
            "processes, as parallel=fsdp requires"
        )
    batch_size = max(1, rows // num_ranks)
    num_steps = num_ranks * max(1, rows // (num_ranks * batch_size))
    raise AdvisedError(
        f"train_student.gradient_accumulation_steps: {problem}.",
        NextStep(
            f"For a new run, {batch_size * num_steps} rows per step (now {rows}) are "
            f"train_student.batch_size={batch_size} with "
            f"train_student.gradient_accumulation_steps={num_steps}; a resumed run keeps "
            f"its own values, and runs on at most {num_micro_batches} processes.",
            settings={
                "train_student.batch_size": batch_size,
                "train_student.gradient_accumulation_steps": num_steps,
            },
        ),
    )


class ParallelLoss:
    """The loss of micro-batches, of which each process has its own."""

    def __init__(
        self,
        student: Student,
        objective: TrainingLoss,
        sharding: Sharding | None,
        context: DistributedContext,
    ) -> None:
        """``sharding`` spreads the weights in place; without it, every process has all of them."""
        self._module: Any = _Loss(student, objective)
        self._objective, self._num_ranks = objective, context.num_ranks
        self._sharded: Any = None
        self._replicated: Any = None
        if context.num_ranks == 1:
            return
        if sharding is not None:
            self._sharded = _shard(sharding)
        else:
            # Weights are a function of the seed, or of the checkpoint: they are equal already.
            self._module = self._replicated = DistributedDataParallel(
                self._module, init_sync=False, gradient_as_bucket_view=True
            )

    def __call__(
        self, batch: Batch, weights: LossWeights, normalizer: LossNormalizer, *, is_last: bool
    ) -> tuple[Tensor, Tensor]:
        """The loss to go backward from, and ``TrainingLoss.micro_batch_loss``' values.

        ``is_last``: this is the process's last micro-batch before the optimizer.
        """
        waits = self._replicated is not None and not is_last
        if self._sharded is not None:
            self._sharded.set_requires_gradient_sync(is_last)
        with self._replicated.no_sync() if waits else nullcontext():
            loss, values = self._module(batch, weights, normalizer)
        return loss * self._num_ranks, values

    @property
    def value_names(self) -> tuple[str, ...]:
        """Of the values, in order; the first is the loss."""
        return self._objective.value_names

    def release(self) -> None:
        """Give back what a forward pass without a backward one has left gathered."""
        if self._sharded is not None:
            self._sharded.reshard()


class _Loss(nn.Module):
    """The student and its objective as one module, whose forward is what processes share."""

    def __init__(self, student: Student, objective: TrainingLoss) -> None:
        super().__init__()
        self.student, self._objective = student, objective

    def forward(
        self, batch: Batch, weights: LossWeights, normalizer: LossNormalizer
    ) -> tuple[Tensor, Tensor]:
        return self._objective.micro_batch_loss(self.student, batch, weights, normalizer)


def _shard(sharding: Sharding) -> Any:
    frozen = {p for p in sharding.root.parameters() if not p.requires_grad}
    for unit in sharding.units:
        fully_shard(unit)
    # What is no block's stays whole until its gradient is taken: the head is used after `forward`.
    sharded: Any = fully_shard(sharding.root, ignored_params=frozen, reshard_after_forward=False)
    register_fsdp_forward_method(sharding.root, sharding.forward_method)
    return sharded
