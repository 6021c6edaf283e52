"""The weights of a merge, scored on validation rows of caches.

In: parents, caches of their teacher, and the weights to begin with. Out: the trials. The score is
the mean over the caches of the merged student's cross-entropy in nats per position, so that a
domain counts as much as another, however many rows it has. One merged student is in memory.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.students.evaluation import EvalOptions
from stages.train_student.merging.weight_search import Trial, Weights, search_weights

if TYPE_CHECKING:
    from cache_format.reader import Cache
    from stages.train_student.merging.parents import Parent

_LOSS_CHUNK = 256  # positions whose full logits exist at once
_LOSS = "validation/loss"


def search_merge(
    parents: "Sequence[Parent]",
    caches: "Sequence[Cache]",
    start: Weights,
    num_evaluations: int,
    extent: EvalOptions,
    report: Callable[[Trial], None],
) -> list[Trial]:
    """All trials. Raises ValueError where a cache is of another teacher or has no validation."""
    from stages.train_student.merging.parents import require_one_origin

    require_one_origin(parents)
    scorer = MergeScorer(parents, caches, extent)
    return search_weights(scorer.score, start, num_evaluations, report)


class MergeScorer:
    """A student whose weights are replaced by those of one merge after another."""

    def __init__(
        self, parents: "Sequence[Parent]", caches: "Sequence[Cache]", extent: EvalOptions
    ) -> None:
        from pipeline.students.student_files import load_student_model
        from stages.compute.device import choose_device
        from stages.train_student.checkpoints.teacher_identity import require_same_teacher
        from stages.train_student.config import TrainStudentConfig
        from stages.train_student.losses.objective import make_objective
        from stages.train_student.merging.parents import frozen_names

        for cache in caches:
            require_same_teacher(str(parents[0].directory), parents[0].config.teacher, cache)
            if cache.num_rows("validation") == 0:
                raise ValueError(
                    f"{cache.path}: its validation split is empty, so there is nothing to search "
                    "by. Give another cache of the same teacher."
                )
        device = choose_device(extent.device)
        self._parents, self._caches, self._extent = parents, caches, extent
        self._model: Any = load_student_model(parents[0].directory).to(device)
        settings = TrainStudentConfig(precision="fp32", loss_chunk=_LOSS_CHUNK, compile="off")
        self._objectives = [
            make_objective(self._model, cache, settings, device) for cache in caches
        ]
        self._names = list(parents[0].tensors)  # what is frozen is compared once, and then left
        self._frozen = frozen_names(parents[0])

    def score(self, weights: Weights) -> float:
        """The mean loss over the caches; infinite where the merged student computes no number."""
        self._load(weights)
        losses = [
            self._loss(cache, objective)
            for cache, objective in zip(self._caches, self._objectives, strict=True)
        ]
        mean = math.fsum(losses) / len(losses)
        return mean if math.isfinite(mean) else math.inf

    def _load(self, weights: Weights) -> None:
        import torch

        from stages.train_student.merging.linear_merge import merged_tensors

        targets = self._model.state_dict()
        with torch.no_grad():
            for name, tensor in merged_tensors(self._parents, weights, self._names):
                targets[name].copy_(tensor)
        self._names = [name for name in self._names if name not in self._frozen]

    def _loss(self, cache: "Cache", objective: Any) -> float:
        from stages.train_student.evaluation.validation import validate

        num_rows = cache.num_rows("validation")
        found = validate(
            self._model,
            objective,
            cache,
            num_rows=num_rows,
            max_rows=min(self._extent.num_rows or num_rows, num_rows),
            batch_size=self._extent.batch_size,
        )
        return found[_LOSS]
