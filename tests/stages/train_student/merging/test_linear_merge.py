"""Sums of weights, and parents that are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.train_student.merging.linear_merge import (
    linear_combination,
    merged_tensors,
    same_bits,
)
from stages.train_student.merging.parents import (
    Parent,
    frozen_names,
    read_parent,
    require_one_origin,
)
from tests.support.experts import change_weights, make_expert, tensors_of
from tests.support.hostile import change_json
from tests.support.students import publish_student

_EMBEDDING = "token_embedding.weight"
_TRAINED = "xlstm_block_stack.post_blocks_norm.weight"


@pytest.fixture(scope="module")
def origin(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_student(tiny_cache, tmp_path_factory.mktemp("origin") / "run")


@pytest.fixture
def pair(origin: Path, tmp_path: Path) -> tuple[Path, Path]:
    return make_expert(origin, tmp_path / "a", 1), make_expert(origin, tmp_path / "b", 2)


def parents_of(*runs: Path) -> list[Parent]:
    return [read_parent(run.name, run / "model") for run in runs]


def merge(runs: tuple[Path, ...], *weights: float) -> dict[str, Tensor]:
    parents = parents_of(*runs)
    require_one_origin(parents)
    return dict(merged_tensors(parents, weights, parents[0].tensors))


def test_a_merge_is_exactly_the_weighted_sum(origin: Path, pair: tuple[Path, Path]) -> None:
    merged, one, other = merge(pair, 0.3, 0.7), tensors_of(pair[0]), tensors_of(pair[1])
    assert merged.keys() == one.keys()
    frozen = frozen_names(parents_of(pair[0])[0])
    assert _EMBEDDING in frozen
    for name, tensor in merged.items():
        if name in frozen:
            assert torch.equal(tensor, tensors_of(origin)[name])
        else:
            assert torch.equal(tensor, torch.add(0.3 * one[name], other[name], alpha=0.7))
            assert not torch.equal(tensor, one[name])


def test_a_student_alone_is_itself_bit_by_bit(pair: tuple[Path, Path]) -> None:
    merged, one = merge(pair, 1.0, 0.0), tensors_of(pair[0])
    assert all(torch.equal(merged[name], one[name]) for name in one)


def test_half_precision_is_summed_in_float32_and_rounded_once() -> None:
    generator = torch.Generator().manual_seed(0)
    halves = [torch.randn(500, generator=generator).bfloat16() for _ in range(5)]
    weights = (0.2, 0.1, 0.3, 0.15, 0.25)
    found = linear_combination(halves, weights)
    exact = sum(weight * half.double() for weight, half in zip(weights, halves, strict=True))
    assert isinstance(exact, Tensor)
    assert found.dtype == torch.bfloat16
    # Half a unit in the last place of 8 bits, and what float32 may have been off by.
    assert ((found.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-6).all()
    stepwise = torch.zeros(500, dtype=torch.bfloat16)
    for half, weight in zip(halves, weights, strict=True):
        stepwise += weight * half
    assert (stepwise - exact).abs().mean() > 1.5 * (found - exact).abs().mean()


@pytest.mark.parametrize("changes", [{"dropout": 0.5}, {"cache_id": "another"}, {"num_steps": 7}])
def test_experts_may_differ_in_how_they_were_trained(
    pair: tuple[Path, Path], changes: dict[str, Any]
) -> None:
    change_json(pair[1] / "model/config.json", changes)
    assert merge(pair, 0.5, 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv_kernel": 5}, "expected the shape"),
        ({"eos_token_id": 7}, "eos_token_id 7, expected 0"),
        ({"teacher": None}, "does not record the student's teacher"),
    ],
)
def test_settings_of_another_origin_are_refused(
    pair: tuple[Path, Path], changes: dict[str, Any], message: str
) -> None:
    change_json(pair[1] / "model/config.json", changes)
    with pytest.raises(ValueError, match=message):
        merge(pair, 0.5, 0.5)


def test_another_teacher_is_refused(pair: tuple[Path, Path]) -> None:
    path = pair[1] / "model/config.json"
    teacher = json.loads(path.read_text())["teacher"]
    change_json(path, {"teacher": teacher | {"weights_sha256": "0" * 64}})
    with pytest.raises(ValueError, match=r"teacher's weights_sha256 0000.*, expected "):
        merge(pair, 0.5, 0.5)
    change_json(path, {"teacher": teacher | {"source": "where it lies is of no consequence"}})
    assert merge(pair, 0.5, 0.5)


def test_another_architecture_is_refused(origin: Path, tiny_cache: Path, tmp_path: Path) -> None:
    other = publish_student(tiny_cache, tmp_path / "other", num_blocks=3)
    with pytest.raises(ValueError, match="num_blocks 3, expected 2"):
        merge((origin, other), 0.5, 0.5)


def test_another_kind_is_refused(pair: tuple[Path, Path]) -> None:
    change_json(pair[1] / "model/config.json", {"model_type": "mamba"})
    with pytest.raises(ValueError, match=r"no student of this package: .* found 'mamba'"):
        merge(pair, 0.5, 0.5)


def test_kinds_are_compared_before_all_else(pair: tuple[Path, Path]) -> None:
    parents = parents_of(*pair)
    parents[1].config.model_type = "hybrid"
    with pytest.raises(ValueError, match="kind 'hybrid', expected 'distil_xlstm'"):
        require_one_origin(parents)


def test_a_student_given_twice_is_refused(pair: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="given twice"):
        merge((pair[0], pair[0]), 0.5, 0.5)


def set_first(name: str, value: float) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name].view(-1)[0] = value

    return change


def remove(tensors: dict[str, Tensor]) -> None:
    del tensors[_TRAINED]


def halve(tensors: dict[str, Tensor]) -> None:
    tensors[_TRAINED] = tensors[_TRAINED].half()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_first(_EMBEDDING, 3.25), f"{_EMBEDDING}: was frozen in training, but differs"),
        (set_first(_TRAINED, float("nan")), f"{_TRAINED}: holds NaN or infinity"),
        (set_first(_TRAINED, float("inf")), f"{_TRAINED}: holds NaN or infinity"),
        (remove, "1 weights are missing"),
        (halve, f"{_TRAINED} is F16 .*, expected F32"),
    ],
)
def test_weights_that_cannot_be_merged(
    pair: tuple[Path, Path], change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    change_weights(pair[1], change)
    with pytest.raises(ValueError, match=message):
        merge(pair, 0.5, 0.5)


def test_a_sum_beyond_the_precision_is_refused(pair: tuple[Path, Path]) -> None:
    for run in pair:
        change_weights(run, set_first(_TRAINED, 3e38))
    with pytest.raises(ValueError, match="the sum is too large"):
        merge(pair, 1.0, 1.0)


def test_bits_are_compared_and_not_numbers() -> None:
    assert not same_bits(torch.zeros(2), -torch.zeros(2))
    assert same_bits(torch.full((2,), float("nan")), torch.full((2,), float("nan")))
    assert not same_bits(torch.zeros(2), torch.zeros(2).bfloat16())
    assert not same_bits(torch.zeros(2), torch.zeros(3))


def test_a_changed_file_with_a_checksum_is_refused(
    tiny_cache: Path, tmp_path: Path, origin: Path
) -> None:
    sealed = publish_student(tiny_cache, tmp_path / "sealed", has_checksums=True)
    weights = sealed / "model/model.safetensors"
    shutil.copyfile(make_expert(origin, tmp_path / "x", 3) / "model/model.safetensors", weights)
    with pytest.raises(ValueError, match="changed since it was published"):
        parents_of(sealed)
