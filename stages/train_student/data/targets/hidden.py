"""The teacher's last hidden state of a position, rebuilt from the coefficients of a transform.

With the teacher's head, which lies in the cache, it is the whole distribution at any temperature.

R rows of a batch, T positions, P of them scored, J components, D width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cache_format.codec.row_codec import Row
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.reader import Cache
from stages.train_student.data.targets.dense_targets import DenseTargets
from stages.train_student.data.targets.kind import HeadOnDevice
from stages.train_student.data.teacher_files import teacher_head

KNOWS_PROBABILITIES = True
KL_NOTE = "KL is over the full vocabulary, to the teacher as the cache's hidden states give it."


@dataclass(frozen=True)
class HiddenTargets:
    """The targets of a batch."""

    coefficients_RTJ: Tensor
    """int16"""

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "HiddenTargets":
        """The same with each tensor as ``function`` returns it."""
        return HiddenTargets(function(self.coefficients_RTJ))


class HiddenDecoder:
    """Rebuilds states on a device, with the transform and the teacher's head of a cache."""

    def __init__(self, cache: Cache, head: HeadOnDevice) -> None:
        transform = cache.tables.hidden_transform
        self._mean_D = torch.from_numpy(transform.mean.copy()).to(head.device)
        self._synthesis_JD = torch.from_numpy(transform.synthesis.copy()).to(head.device)
        self._head_VD = head.place(teacher_head(cache))

    @torch.no_grad()
    def __call__(self, targets: HiddenTargets, scored_P: Tensor) -> DenseTargets:
        """See ``TargetDecoder``."""
        # By index: a mask would make the host wait until the device has counted what is set in it.
        coefficients_PJ = targets.coefficients_RTJ.flatten(0, 1).index_select(0, scored_P)
        with torch.autocast(self._mean_D.device.type, enabled=False):
            states_PD = torch.addmm(self._mean_D, coefficients_PJ.float(), self._synthesis_JD)
        return DenseTargets(states_PD.to(self._head_VD.dtype), self._head_VD)


make_decoder = HiddenDecoder


def batch_targets(rows: Sequence[Row], spec: TargetSpec) -> HiddenTargets:
    """See ``TargetKind.batch_targets``."""
    del spec
    coefficients = [row.coefficients for row in rows if row.coefficients is not None]
    assert len(coefficients) == len(rows)
    return HiddenTargets(torch.from_numpy(np.stack(coefficients)))
