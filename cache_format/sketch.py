"""The random signs that hidden states are projected with: a pure function of seed and unit.

With S = signs / √dim, E[S Sᵀ] = I, hence ‖Sᵀx‖² is an unbiased estimate of ‖x‖². A new S for
every unit makes a student feel every direction over a training run. Both stages call this: one to
project the teacher's states, the other to project the student's.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray


def sketch_signs(seed: int, unit: int, width: int, dim: int) -> NDArray[np.int8]:
    """The signs, ±1, of shape [width, dim]: the bits of SHAKE-256, the same on every machine."""
    key = b"sketch" + seed.to_bytes(8, "little") + unit.to_bytes(8, "little")
    stream = hashlib.shake_256(key).digest((width * dim + 7) // 8)
    bits = np.unpackbits(np.frombuffer(stream, np.uint8), count=width * dim, bitorder="little")
    signs: NDArray[np.int8] = (bits.astype(np.int8) * 2 - 1).reshape(width, dim)
    return signs
