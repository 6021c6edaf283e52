"""A cache that also holds the teacher's weights: a whole model directory, hashed like the rest."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import cache_format
from cache_format.reader import Cache
from cache_format.tools.verify import verify
from stages.cache_teacher.estimate import estimate
from tests.support.stage_one_runs import Bench
from tests.support.tiny import tiny_cache_config


def split(teacher: Path, target: Path) -> Path:
    """The teacher with its weights in several files."""
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype="auto")
    model.save_pretrained(target, max_shard_size="20KB")
    for path in teacher.iterdir():
        if path.suffix in (".json", ".jinja") and not (target / path.name).exists():
            (target / path.name).write_bytes(path.read_bytes())
    return target


def names_in(cache: Cache) -> set[str]:
    return {name for name in cache.attachments() if name.startswith("model")}


@pytest.mark.parametrize("is_split", [False, True])
def test_the_teacher_can_be_loaded_from_the_cache(bench: Bench, is_split: bool) -> None:
    teacher = split(bench.teacher, bench.root / "split") if is_split else bench.teacher
    bench.run(num_tokens=1, teacher=teacher, keep_teacher_weights=True)
    cache = cache_format.open(bench.root / "cache", allow_incomplete=True)
    expected = {path.name for path in teacher.glob("model*")}
    assert names_in(cache) == expected
    assert len(expected) > 2 or not is_split
    found, original = (
        AutoModelForCausalLM.from_pretrained(place, dtype="auto")
        for place in (cache.teacher_directory(), teacher)
    )
    for name, weight in original.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight), name


def test_a_flipped_bit_of_a_weight_is_named(bench: Bench) -> None:
    bench.run(keep_teacher_weights=True)
    path = bench.root / "cache/teacher/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    (problem,) = verify(bench.open())
    assert problem.path == path


def test_weights_do_not_change_the_identity_and_are_left_out_by_default(bench: Bench) -> None:
    kept, bare = bench.run("kept", keep_teacher_weights=True), bench.run("bare")
    assert kept.cache_id == bare.cache_id
    assert names_in(bench.open("bare")) == set()
    bench.run("bare", keep_teacher_weights=True)  # it was begun without
    assert names_in(bench.open("bare")) == set()


def test_an_estimate_counts_the_weights(bench: Bench) -> None:
    found = [
        estimate(
            tiny_cache_config(bench.teacher, bench.corpus, keep_teacher_weights=keeps),
            seconds=60,
            report=lambda _: None,
        ).teacher_bytes
        for keeps in (False, True)
    ]
    num_bytes = (bench.teacher / "model.safetensors").stat().st_size
    assert found[1] - found[0] == num_bytes


def test_facts_of_the_teacher_stay_beside_the_weights(bench: Bench) -> None:
    bench.run(num_tokens=1, keep_teacher_weights=True)
    facts = json.loads((bench.root / "cache/teacher/teacher.json").read_text())
    assert facts["hidden_size"] == 32
