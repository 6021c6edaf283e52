"""What a batch holds at its scored positions, those whose label belongs to their own document.

B rows of a batch, T positions, P of all positions scored.
"""

from torch import Tensor

from cache_format.metadata.spec import TargetSpec
from stages.train_student.data.batch import Batch
from stages.train_student.data.targets.sparse_targets import SparseDraws, SparseTargets


def scored_targets(batch: Batch, spec: TargetSpec) -> SparseTargets:
    """The targets of the scored positions, in the order of ``batch.scored``."""
    draws = None
    if batch.drawn_ids is not None:
        assert batch.draw_counts is not None
        assert batch.drawn_gaps is not None
        assert spec.draw_inverse_temperature is not None
        draws = SparseDraws(
            scored(batch.drawn_ids, batch),
            scored(batch.draw_counts, batch),
            scored(batch.drawn_gaps, batch),
            spec.draw_inverse_temperature,
        )
    return SparseTargets(
        scored(batch.kept_ids, batch),
        scored(batch.gaps, batch),
        scored(batch.tail_log_mass, batch),
        spec.inverse_temperatures,
        draws,
    )


def scored(tensor_BTx: Tensor, batch: Batch) -> Tensor:
    """What [B, T, …] holds at the scored positions, [P, …], in the order of ``batch.scored``."""
    # By index: a mask would make the host wait until the device has counted what is set in it.
    return tensor_BTx.flatten(0, 1).index_select(0, batch.scored)
