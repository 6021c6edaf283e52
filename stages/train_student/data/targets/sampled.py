"""Ids drawn from the whole distribution, with their counts (RS-KD, arXiv 2503.16870)."""

from collections.abc import Sequence

from cache_format.codec.row_codec import Row
from cache_format.metadata.spec_parts.targets import TargetSpec
from stages.train_student.data.targets.ids import IdTargets, kept_targets, sparse_targets

KNOWS_PROBABILITIES = False
KL_NOTE = (
    "This cache holds samples. KL is taken at the temperature of the draws, and is too high by "
    "what so few leave open; agreement is with the id that was drawn most. How often the teacher "
    "is right, and how sure it is, cannot be known from samples, and is left out."
)
loss_targets = sparse_targets


def batch_targets(rows: Sequence[Row], spec: TargetSpec) -> IdTargets:
    """See ``TargetKind.batch_targets``."""
    # Logs of counts tell of z/T at the temperature that ids were drawn at; gaps are those of z.
    return kept_targets(rows, spec.top_k, gap_scale=1 / spec.inverse_temperatures[0])
