"""The k largest logits of a position, and the log-mass of all others at a few temperatures."""

from collections.abc import Sequence

from cache_format.codec.row_codec import Row
from cache_format.metadata.spec_parts.targets import TargetSpec
from stages.train_student.data.targets.ids import IdTargets, kept_targets, make_sparse_decoder

KNOWS_PROBABILITIES = True
KL_NOTE = "KL is over the kept ids and, as one outcome, everything else."
make_decoder = make_sparse_decoder


def batch_targets(rows: Sequence[Row], spec: TargetSpec) -> IdTargets:
    """See ``TargetKind.batch_targets``."""
    return kept_targets(rows, spec.logits.top_k)
