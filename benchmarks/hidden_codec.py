"""Bytes and speed of ``hidden`` targets: the coefficients of the teacher's last hidden states.

The transform is fitted to the first half of the rows, the other half is measured. Of the bytes,
those of the tokens are left out; speeds are those of whole rows. P positions, J components.
"""

import numpy as np
from numpy.typing import NDArray

from benchmarks.alternating import median_seconds
from benchmarks.target_kinds import rows_of
from cache_format.codec.row_codec import decode_row
from cache_format.tables.vocabulary_ranks import RankTable
from pipeline.comparison.teacher_rows import cells_of, halves
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.teacher.teacher import Teacher


def measure_hidden(
    teacher: Teacher, packed: PackedUnit, ranks: RankTable, repeats: int
) -> dict[str, float]:
    """The figures at the default ``hidden_kl``, by name."""
    first_half, second_half = halves(packed)
    source = rows_of(teacher, first_half, ranks)
    config = CacheTeacherConfig(targets="hidden", hidden_projection="none", compile="off")
    spec, shared = source.spec(config)
    made = source.make(source.show(second_half), (spec, shared), config)
    rows, encoded = made.rows, made.cells
    seconds = median_seconds(
        {
            "encode": lambda: [cells_of(row, spec, shared) for row in rows],
            "decode": lambda: [
                decode_row(cells, row.document_starts, spec, shared)
                for cells, row in zip(encoded, rows, strict=True)
            ],
        },
        repeats,
    )
    coefficients_PJ = np.concatenate(
        [row.coefficients[row.scored()] for row in rows if row.coefficients is not None]
    )
    num_scored, num_tokens = len(coefficients_PJ), second_half.scored_RT().size
    kl_at_1, _, kl_at_2 = spec.targets.states.self_kl
    return {
        "hidden_bytes_per_token": round(sum(len(row["hidden"]) for row in encoded) / num_tokens, 2),
        "hidden_entropy_bytes_per_token": round(
            entropy_bits(coefficients_PJ) / 8 * num_scored / num_tokens, 2
        ),
        "hidden_kl_nats_t1": float(f"{kl_at_1:.3g}"),
        "hidden_kl_nats_t2": float(f"{kl_at_2:.3g}"),
        "hidden_encode_tokens_per_s": round(num_tokens / seconds["encode"]),
        "hidden_decode_tokens_per_s": round(num_tokens / seconds["decode"]),
    }


def entropy_bits(coefficients_PJ: NDArray[np.integer]) -> float:
    """Sum over components of the entropy of what is there, bits.

    What coding each component by itself takes at the least, of positions as many as it is measured
    on: the frequencies are those of these very coefficients.
    """
    bits = 0.0
    for values in coefficients_PJ.T:
        counts = np.unique(values, return_counts=True)[1]
        shares = counts / counts.sum()
        bits -= float((shares * np.log2(shares)).sum())
    return bits
