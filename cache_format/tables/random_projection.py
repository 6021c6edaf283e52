"""What is sketched, and with which random signs: pure functions of the spec and the unit.

With S = signs / √dim, E[S Sᵀ] = I, hence ‖Sᵀx‖² is an unbiased estimate of ‖x‖². A new S for
every unit makes a student feel every direction over a training run; so does a new choice of layers.
Both stages call this: one to project the teacher's states, the other to project the student's.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray


def sketch_signs(seed: int, unit: int, width: int, dim: int) -> NDArray[np.int8]:
    """The signs, ±1, of shape [width, dim]: the bits of SHAKE-256, the same on every machine."""
    num_bytes = (width * dim + 7) // 8
    stream = np.frombuffer(_stream(b"sketch", seed, unit, num_bytes), np.uint8)
    bits = np.unpackbits(stream, count=width * dim, bitorder="little")
    signs: NDArray[np.int8] = (bits.astype(np.int8) * 2 - 1).reshape(width, dim)
    return signs


def chosen_layers(hidden_states: str, num_layers: int, seed: int, unit: int) -> tuple[int, ...]:
    """The layers, rising, whose hidden states are projected in ``unit``, or the mean of them.

    Layer 1 is what the first block gives, layer ``num_layers`` what the head is applied to: the
    last block's, after the final norm. ``hidden_states`` and ``num_layers`` are those of the spec.
    Random layers are those whose numbers in a stream of SHAKE-256 are smallest, so that every
    choice is equally likely.
    """
    rule, _, numbers = hidden_states.partition(":")
    if rule == "last":
        return (num_layers,)
    if rule in ("layers", "each"):
        return tuple(map(int, numbers.split(",")))
    if rule == "random_layers":
        keys = np.frombuffer(_stream(b"layers", seed, unit, 8 * num_layers), "<u8")
        chosen = np.argsort(keys, kind="stable")[: int(numbers)]
        return tuple(sorted((chosen + 1).tolist()))
    assert rule == "mean_over_layers", rule  # the spec allows no other
    return tuple(range(1, num_layers + 1))


def _stream(purpose: bytes, seed: int, unit: int, num_bytes: int) -> bytes:
    key = purpose + seed.to_bytes(8, "little") + unit.to_bytes(8, "little")
    return hashlib.shake_256(key).digest(num_bytes)
