"""Ids drawn from the whole distribution, with their counts (RS-KD, arXiv 2503.16870)."""

from collections.abc import Sequence

from cache_format.codec.row_codec import Row
from cache_format.metadata.spec_parts.targets import TargetSpec
from stages.train_student.data.targets.ids import IdTargets, kept_targets, make_sparse_decoder

KNOWS_PROBABILITIES = False
KL_NOTE = (
    "This cache holds samples. KL is computed at the temperature of the draws, and is biased "
    "upward because there are few draws; agreement is with the most frequently drawn id. The "
    "teacher's accuracy and calibration cannot be computed from samples, and are omitted."
)
make_decoder = make_sparse_decoder


def batch_targets(rows: Sequence[Row], spec: TargetSpec) -> IdTargets:
    """See ``TargetKind.batch_targets``."""
    # Logs of counts tell of z/T at the temperature that ids were drawn at; gaps are those of z.
    draws = spec.sampling
    return kept_targets(rows, draws.num_draws, gap_scale=1 / draws.inverse_temperature)
