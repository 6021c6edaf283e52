"""Rows of several caches in one batch: each is decoded with what its own cache was coded with."""

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cache_format.reader import Cache
from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.batch import read_batch, read_mixed_batch
from stages.train_student.data.loader import mixed_order
from stages.train_student.data.mixed_sampler import located
from stages.train_student.data.mixture import CacheMixture, mix
from stages.train_student.data.targets.kind import HeadOnDevice
from stages.train_student.data.targets.mixed import MixedDecoder, MixedTargets, make_decoders
from stages.train_student.data.teacher_files import teacher_head
from tests.support.sample_cache import pca_sketch, sample_transform
from tests.support.student_caches import TARGETS, write_cache

CPU = torch.device("cpu")


def other_transform(kind: str) -> dict[str, Any]:
    """Targets of ``kind`` and their transform, which is another one where the kind has any."""
    targets = TARGETS[kind]
    if targets.hidden is None:
        return {"targets": targets}
    transform = sample_transform(num_components=5)
    coded = replace(
        targets.hidden,
        num_components=5,
        num_symbols=transform.code.num_symbols,
        num_classes=transform.code.num_classes,
        num_raw_bits=transform.code.num_raw_bits,
        transform_sha256=transform.sha256,
    )
    return {"targets": replace(targets, hidden=coded), "transform": transform}


def two_caches(root: Path, kind: str) -> CacheMixture:
    one = write_cache(root / "one", TARGETS[kind])
    return mix([one, write_cache(root / "other", seed=8, **other_transform(kind))])


def tensors(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    """All tensors in a dataclass, by the names of their fields."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    if not is_dataclass(value):
        return {}
    parts = [tensors(getattr(value, f.name), f"{name}.{f.name}") for f in fields(value)]
    return {key: tensor for part in parts for key, tensor in part.items()}


@pytest.mark.parametrize("kind", TARGETS)
def test_each_cache_decodes_its_own_rows(tmp_path: Path, kind: str) -> None:
    mixture = two_caches(tmp_path, kind)
    head = HeadOnDevice(CPU, torch.float32, teacher_head(mixture.caches[0]))
    decoders = make_decoders(mixture.caches, head)
    indices = [2 * 3, 2 * 0, 2 * 4 + 1, 2 * 1 + 1, 2 * 2 + 1]  # rows 3, 0 and rows 4, 1, 2
    batch = read_mixed_batch(mixture, indices, with_sketch=True)
    assert isinstance(batch.targets, MixedTargets)
    found = tensors(MixedDecoder(decoders)(batch.targets, batch.scored))
    alone = [
        read_batch(
            cache,
            "train",
            [row for source, row in located(indices, 2) if source == number],
            with_sketch=True,
        )
        for number, cache in enumerate(mixture.caches)
    ]
    expected = [
        tensors(decoder(own.targets, own.scored))
        for decoder, own in zip(decoders, alone, strict=True)
    ]
    assert found
    for name, tensor in found.items():
        if tensor.shape[:1] == (batch.num_scored,):
            joined = torch.cat([part[name] for part in expected])
            assert torch.equal(tensor, joined), name
        else:  # of no position: the same in both
            assert all(torch.equal(tensor, part[name]) for part in expected), name
    for name in ("input_ids", "labels", "is_document_start", "sketch", "projection"):
        joined = torch.cat([getattr(own, name) for own in alone])
        assert torch.equal(getattr(batch, name), joined), name
    assert batch.scored.tolist() == (batch.labels.flatten() >= 0).nonzero()[:, 0].tolist()


def test_the_head_of_the_teacher_is_there_once(tmp_path: Path) -> None:
    mixture = two_caches(tmp_path, "hidden")
    decoders = make_decoders(mixture.caches, HeadOnDevice(CPU, torch.bfloat16))
    batches = [read_batch(cache, "train", [0], with_sketch=False) for cache in mixture.caches]
    heads = [
        decoder(batch.targets, batch.scored).head_VD  # type: ignore[union-attr]
        for decoder, batch in zip(decoders, batches, strict=True)
    ]
    assert heads[0] is heads[1]


def test_one_matrix_of_principal_components_is_that_of_all_rows(tmp_path: Path) -> None:
    def cache(name: str, seed: int) -> Cache:
        return write_cache(tmp_path / name, TARGETS["top_k"], pca_sketch(), seed=seed)

    batch = read_mixed_batch(mix([cache("one", 1), cache("other", 2)]), [0, 1], with_sketch=True)
    assert batch.projection is not None
    assert batch.projection.shape == (1, 16, 8)


def test_a_mixture_of_one_cache_is_read_in_the_order_of_the_cache(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "one", TARGETS["top_k"])
    order = mixed_order(
        mix([cache], [0.3]),
        TrainStudentConfig(batch_size=1, gradient_accumulation_steps=2, seed=4),
        [5],
    )
    rows = order.rows_of_step(0).tolist()
    mixed = read_mixed_batch(mix([cache]), rows, with_sketch=True)
    own = read_batch(cache, "train", rows, with_sketch=True)
    assert tensors(mixed).keys() == tensors(own).keys()
    assert all(torch.equal(tensor, tensors(own)[name]) for name, tensor in tensors(mixed).items())
