"""Caches of every kind of target and sketch, made up, that a student can be trained from.

Rows are those of ``tests.support.sample_cache``: of 12 positions, 40 ids, width 16. Five of
them are for training, five for validation.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import cache_format
from cache_format.metadata.spec_parts.sketch import SketchSpec
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.reader import Cache
from cache_format.tables.hidden_transform import HiddenTransform
from cache_format.writer import CacheWriter
from tests.support.sample_cache import (
    ROWS_OF_UNIT,
    drawn_targets,
    fill,
    hidden_targets,
    sample_shared,
    sample_spec,
    sampled_targets,
    top_k_hidden_targets,
    top_k_targets,
    with_moment,
)

TARGETS = {
    "top_k": sample_spec().targets,
    "sampled": sampled_targets(),
    "sampled hot": sampled_targets(inverse_temperature=0.75),
    "top_k+sampled": drawn_targets(),
    "hidden": hidden_targets(),
    "top_k+hidden": top_k_hidden_targets(),
    "top_k with moment": with_moment(top_k_targets()),
    "top_k+sampled with moment": with_moment(drawn_targets()),
}
TEMPERATURES = {"sampled": (1.0, 1.0), "sampled hot": (4 / 3, 4 / 3)}
"""The only ones allowed, start and end, where not all are."""


def write_cache(
    path: Path,
    targets: TargetSpec,
    sketch: SketchSpec | None = None,
    *,
    transform: HiddenTransform | None = None,
    **changes: Any,
) -> Cache:
    """A finished cache with an embedding, opened; ``changes`` replace fields of its spec."""
    sketch = sketch or sample_spec().sketch
    spec = sample_spec(targets=targets, sketch=sketch, **changes)
    shared = sample_shared(spec)
    if transform is not None:
        shared = replace(shared, transform=transform)
    writer = CacheWriter.create_or_open(path, spec, shared)
    writer.write_attachments(write_embedding)
    fill(writer, sorted(ROWS_OF_UNIT))
    writer.publish_manifest(num_tokens_requested=120, complete=True)
    return cache_format.open(path)


def write_embedding(directory: Path) -> None:
    """The file of the teacher that a student begins from."""
    embedding = torch.randn(48, 16, generator=torch.Generator().manual_seed(0)) * 0.3
    save_file({"embedding": embedding}, directory / "embedding.safetensors")
