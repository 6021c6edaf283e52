"""Caches of which some positions are context: the next token is given, but not to be learned."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import cache_format
from cache_format.metadata.spec import CacheSpec
from cache_format.reader import Cache
from cache_format.writer import CacheWriter
from tests.support.sample_cache import ROWS_OF_UNIT, sample_shared, unit_rows, with_context
from tests.support.student_caches import write_embedding

CONTEXT = slice(2, 6)
"""The positions of every row that are context."""


def write_context_cache(
    path: Path, spec: CacheSpec, *, whole_rows: Mapping[int, Sequence[int]] | None = None
) -> Cache:
    """The rows of a sample cache of ``spec``, positions ``CONTEXT`` of each being context.

    Of ``whole_rows``, by unit, all positions are.
    """
    writer = CacheWriter.create_or_open(path, spec, sample_shared(spec))
    writer.write_attachments(write_embedding)
    for unit in ROWS_OF_UNIT:
        rows = []
        for number, row in enumerate(unit_rows(unit, spec)):
            is_context = np.zeros(spec.sequence_length, bool)
            is_whole = whole_rows is not None and number in whole_rows.get(unit, ())
            is_context[:] = is_whole
            is_context[CONTEXT] = True
            rows.append(with_context(row, is_context))
        writer.write_unit(unit, rows, num_documents=4)
    writer.publish_manifest(num_tokens_requested=120, complete=True)
    return cache_format.open(path)
