"""The Win-and-Tie rate of a student against its teacher (arXiv 2603.15590, section 4).

On benchmark b the student wins or ties at tolerance α where A_S(b) ≥ (1 − α) A_T(b). C_α is the
share of benchmarks on which it does, α* the least α with C_α ≥ 1/2, and the student is lossless if
C_0 ≥ 1/2. All of it follows from one number per benchmark, its needed tolerance: the least α ≥ 0 at
which the student wins or ties there.

N benchmarks, G tolerances, R rows of scores (one where they are not resampled).
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def needed_tolerances(student_RN: Floats, teacher_RN: Floats) -> Floats:
    """The least α ≥ 0 at which each benchmark is won or tied: max(0, 1 − A_S / A_T), [R, N].

    Scores are finite, at least 0, and higher ones better. Where the teacher has 0, every student
    ties. 0 if and only if A_S ≥ A_T: in floating point, too, as a quotient of unequal numbers never
    rounds up to 1.
    """
    quotients_RN = np.ones(np.broadcast_shapes(student_RN.shape, teacher_RN.shape))
    np.divide(student_RN, teacher_RN, out=quotients_RN, where=teacher_RN > 0)
    tolerances_RN: Floats = np.maximum(0.0, 1.0 - quotients_RN)
    return tolerances_RN


def win_and_tie_rates(tolerances_RN: Floats, at_G: Floats) -> Floats:
    """C_α at each of the tolerances ``at_G``, [R, G], of the needed ones."""
    sorted_RN = np.sort(np.atleast_2d(tolerances_RN), axis=1)
    won_RG = np.stack([np.searchsorted(row_N, at_G, side="right") for row_N in sorted_RN])
    rates_RG: Floats = won_RG / sorted_RN.shape[1]
    return rates_RG


def critical_tolerances(tolerances_RN: Floats) -> Floats:
    """α* of each row, [R]: the ⌈N/2⌉-th smallest of its needed tolerances."""
    sorted_RN = np.sort(np.atleast_2d(tolerances_RN), axis=1)
    critical_R: Floats = sorted_RN[:, (sorted_RN.shape[1] + 1) // 2 - 1]
    return critical_R
