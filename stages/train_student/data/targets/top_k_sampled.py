"""The k largest logits of a position, and ids drawn from the others.

R rows of a batch, T positions, J distinct ids that may be drawn at a position.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from cache_format.codec.row_codec import Row
from cache_format.codec.samples import TailSamples
from cache_format.metadata.spec_parts.targets import TargetSpec
from stages.train_student.data.targets.ids import (
    IdTargets,
    SampledIds,
    kept_targets,
    make_sparse_decoder,
)

KNOWS_PROBABILITIES = True
KL_NOTE = "KL is an unbiased estimate of the KL over the full vocabulary."
make_decoder = make_sparse_decoder


def batch_targets(rows: Sequence[Row], spec: TargetSpec) -> IdTargets:
    """See ``TargetKind.batch_targets``."""
    samples = [row.kept.draws for row in rows if row.kept.draws is not None]
    assert len(samples) == len(rows)
    kept = kept_targets(rows, spec.logits.top_k)
    return replace(kept, samples=_dense(samples, spec.sampling.num_draws))


def _dense(samples: Sequence[TailSamples], most: int) -> SampledIds:
    """Ragged ids, counts and gaps as [R, T, most]; what is missing is id 0, drawn 0 times."""
    num_ids = np.stack([one.num_ids for one in samples]).astype(np.int64)
    is_sample = np.arange(most) < num_ids[:, :, None]
    ids = np.zeros(is_sample.shape, np.int64)
    counts = np.zeros(is_sample.shape, np.uint8)
    gaps = np.zeros(is_sample.shape, np.float32)
    ids[is_sample] = np.concatenate([one.ids for one in samples])
    counts[is_sample] = np.concatenate([one.counts for one in samples])
    gaps[is_sample] = np.concatenate([one.gaps for one in samples])
    return SampledIds(
        ids=torch.from_numpy(ids),
        counts=torch.from_numpy(counts),
        logit_gaps=torch.from_numpy(gaps),
    )
