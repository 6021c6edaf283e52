"""Ids drawn from the whole distribution, with their counts (RS-KD, arXiv 2503.16870)."""

from collections.abc import Sequence

from cache_format.codec.row_codec import Row
from cache_format.metadata.spec_parts.targets import TargetSpec
from stages.train_student.data.targets.ids import IdTargets, kept_targets, sparse_targets

KNOWS_PROBABILITIES = False
KL_NOTE = (
    "This cache holds samples. KL is computed at the temperature of the draws, and is biased "
    "upward because there are few draws; agreement is with the most frequently drawn id. The "
    "teacher's accuracy and calibration cannot be computed from samples, and are omitted."
)
loss_targets = sparse_targets


def batch_targets(rows: Sequence[Row], spec: TargetSpec) -> IdTargets:
    """See ``TargetKind.batch_targets``."""
    # Logs of counts tell of z/T at the temperature that ids were drawn at; gaps are those of z.
    return kept_targets(rows, spec.top_k, gap_scale=1 / spec.inverse_temperatures[0])
