"""Encode a row into the columns of a shard, and decode it.

In: a ``Row`` of NumPy arrays. Out: the bytes of each column (see ``columns.py``), or the reverse.
Tokens and sketch are coded here, the targets by their kind (``targets/``).
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cache_format.codec import columns
from cache_format.codec.columns import named
from cache_format.codec.row import PackedTokens, Row, check_document_starts, check_shapes
from cache_format.codec.targets.kinds import kind_of
from cache_format.metadata.spec import CacheSpec
from cache_format.tables.shared_files import SharedFiles

__all__ = ["Encoded", "Row", "decode_row", "encode_row"]

Encoded = Mapping[str, bytes | NDArray[np.int32]]


def encode_row(row: Row, spec: CacheSpec, shared: SharedFiles) -> Encoded:
    """The columns of ``row``; raises ValueError naming column and position if it breaks a rule."""
    check_shapes(row, spec)
    scored = row.scored()
    encoded: dict[str, bytes | NDArray[np.int32]] = {
        "token_ids": named(
            "token_ids", lambda: columns.encode_token_ids(row.token_ids, shared.ranks)
        ),
        "document_starts": row.document_starts.astype(np.int32),
        "context": columns.encode_context(row.is_context),
    }
    encoded |= kind_of(spec).encode(row, scored, spec, shared)
    if row.sketch is not None:
        # The states of a position one after another, each with a scale of its own.
        sketch = np.where(scored[:, None, None], row.sketch, np.float32(0))
        flat, num_states = sketch.reshape(-1, spec.sketch.dim), spec.sketch.num_states
        numbers, scale = named(
            "sketch",
            lambda: columns.encode_sketch(flat, spec.sketch.dtype, num_states=num_states),
        )
        encoded |= {"sketch": numbers, "sketch_scale": scale}
    return encoded


def decode_row(
    encoded: Mapping[str, bytes | memoryview],
    document_starts: NDArray[np.int32],
    spec: CacheSpec,
    shared: SharedFiles,
) -> Row:
    """The row whose columns are ``encoded``; ``sketch`` is None unless its columns are there.

    Raises ValueError naming the column if the bytes are not what the spec calls for.
    """
    num_positions = spec.sequence_length
    check_document_starts(document_starts, num_positions)
    token_ids = named(
        "token_ids",
        lambda: columns.decode_token_ids(encoded["token_ids"], num_positions + 1, shared.ranks),
    )
    is_context = named("context", lambda: columns.decode_context(encoded["context"], num_positions))
    tokens = PackedTokens(token_ids, document_starts, is_context)
    row = kind_of(spec).decode(encoded, tokens, spec, shared)
    return replace(row, sketch=_sketch_of(encoded, spec))


def _sketch_of(
    encoded: Mapping[str, bytes | memoryview], spec: CacheSpec
) -> NDArray[np.float32] | None:
    """The sketch, [T, L, d], if its columns are there."""
    if "sketch" not in encoded:
        return None
    sketch = spec.sketch
    flat = named(
        "sketch",
        lambda: columns.decode_sketch(
            encoded["sketch"],
            encoded["sketch_scale"],
            (spec.sequence_length * sketch.num_states, sketch.dim),
            sketch.dtype,
        ),
    )
    return flat.reshape(spec.sequence_length, sketch.num_states, sketch.dim)
