"""The k largest logits of a position, and its last hidden state for how the others are spread.

R rows of a batch, T positions, P of them scored.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from cache_format.codec.row_codec import Row
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.reader import Cache
from stages.train_student.data.targets import hidden
from stages.train_student.data.targets.dense_targets import DenseTargets
from stages.train_student.data.targets.hidden import HiddenDecoder, HiddenTargets
from stages.train_student.data.targets.ids import IdTargets, kept_targets, sparse_targets
from stages.train_student.data.targets.kind import HeadOnDevice

KNOWS_PROBABILITIES = True
KL_NOTE = (
    "KL is over the full vocabulary: kept ids and the mass of the others are exact, the cache's "
    "hidden states say how that is spread."
)


@dataclass(frozen=True)
class BothTargets:
    """The targets of a batch."""

    ids: IdTargets
    states: HiddenTargets

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "BothTargets":
        """The same with each tensor as ``function`` returns it."""
        return BothTargets(self.ids.mapped(function), self.states.mapped(function))


class BothDecoder:
    """Rebuilds states, and sets the kept logits beside them."""

    def __init__(self, cache: Cache, head: HeadOnDevice) -> None:
        self._spec = cache.spec.targets
        self._of_states = HiddenDecoder(cache, head)

    def __call__(self, targets: BothTargets, scored_P: Tensor) -> DenseTargets:
        """See ``TargetDecoder``."""
        kept = sparse_targets(targets.ids, scored_P, self._spec)
        return replace(self._of_states(targets.states, scored_P), kept=kept)


make_decoder = BothDecoder


def batch_targets(rows: Sequence[Row], spec: TargetSpec) -> BothTargets:
    """See ``TargetKind.batch_targets``."""
    ids = kept_targets(rows, spec.logits.top_k)
    return BothTargets(ids, hidden.batch_targets(rows, spec))
