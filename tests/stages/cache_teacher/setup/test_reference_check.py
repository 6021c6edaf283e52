"""A cache is not added to by a teacher that would not have made it."""

from typing import Any

import pytest
import torch

from cache_format.errors import CacheError, CorruptShardError
from stages.cache_teacher.setup import reference_check
from stages.cache_teacher.setup.reference_check import (
    TOLERANCES,
    Tolerance,
    disagreement,
)
from stages.cache_teacher.targets.difference import Difference
from stages.cache_teacher.teacher import lazy_teacher
from stages.cache_teacher.teacher.teacher import Teacher
from tests.support.sample_cache import contents
from tests.support.stage_one_runs import Bench

SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"teacher_dtype": "bfloat16"},
    "float16": {"teacher_dtype": "float16"},
    "top_p": {"top_p": 0.5},
    "few": {"top_k": 1},
    "sampled": {"targets": "sampled"},
    "top_k+sampled": {"targets": "top_k+sampled"},
    "hidden": {"targets": "hidden"},
    "top_k+hidden": {"targets": "top_k+hidden"},
    "hidden in bfloat16": {"targets": "hidden", "teacher_dtype": "bfloat16"},
    "one row at a time": {"rows_per_forward": 1},
}


class Compared:
    """Counts the comparisons, and how far apart the numbers were at worst."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num = 0
        self.excess = 0.0

        def noted(differences: list[Difference], tolerance: Tolerance) -> str | None:
            self.num += len(differences)
            self.excess = max(self.excess, *(difference.excess for difference in differences))
            return disagreement(differences, tolerance)

        monkeypatch.setattr(reference_check, "disagreement", noted)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_teacher_agrees_with_itself(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bench.run(num_tokens=1, **SETTINGS[name])
    compared = Compared(monkeypatch)
    bench.run(num_tokens=700, **SETTINGS[name])
    assert compared.num > 50
    # The codec's rounding accounts for nearly all: batches of other sizes may round otherwise.
    dtype = SETTINGS[name].get("teacher_dtype", "float32")
    assert compared.excess < TOLERANCES[dtype].worst / 10


def altered(monkeypatch: pytest.MonkeyPatch, noise: float) -> None:
    """Teachers whose weights are not those in their files."""

    def load(*arguments: Any) -> Teacher:
        teacher = Teacher(*arguments)
        torch.manual_seed(0)
        with torch.no_grad():
            # Tied to the embedding: what the head does not show, the states do.
            weight = teacher.head_weight
            weight += noise * weight.std() * torch.randn_like(weight)
        return teacher

    monkeypatch.setattr(lazy_teacher, "Teacher", load)


@pytest.mark.parametrize("targets", ["top_k", "sampled", "top_k+sampled", "hidden"])
def test_a_teacher_that_was_altered_behind_its_hash_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, targets: str
) -> None:
    bench.run(num_tokens=700, targets=targets)
    before = contents(bench.root / "cache")
    altered(monkeypatch, 0.05)
    place = r"unit 0, row [01], position \d+: .* in the cache and .* now"
    with pytest.raises(CacheError, match=place) as caught:
        bench.run(targets=targets)
    assert "the attention kernel" in str(caught.value)
    assert contents(bench.root / "cache") == before


def test_a_new_cache_has_no_reference_to_compare(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    altered(monkeypatch, 0.05)
    assert bench.run().complete


def test_a_complete_cache_is_not_compared_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = bench.run()
    altered(monkeypatch, 0.05)
    assert bench.run() == manifest


def test_a_damaged_shard_is_named(bench: Bench) -> None:
    shard = bench.run(num_tokens=700).shards[0]
    path = bench.root / "cache" / shard.file
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptShardError, match="only unit 0 is made again"):
        bench.run()


def difference(what: str, stored: float, made: float) -> Difference:
    return Difference(
        row=1,
        position=7,
        what=what,
        stored=stored,
        made=made,
        rounding=0.01,
        is_averaged=what == NEXT,
    )


NEXT = "the next token's log-probability"


class TestDisagreement:
    TOLERANCE = Tolerance(mean=0.1, worst=0.5)

    def test_no_differences_are_no_disagreement(self) -> None:
        assert disagreement([], self.TOLERANCE) is None

    @pytest.mark.parametrize("sign", [-1, 1])
    def test_one_large_difference_is_a_disagreement(self, sign: int) -> None:
        exact = [difference(NEXT, -1.0, -1.0)] * 99
        gap = "the distance of id 3 from the largest logit"
        assert disagreement([*exact, difference(gap, 1, 1 + sign * 0.509)], self.TOLERANCE) is None
        found = disagreement([*exact, difference(gap, 1, 1 + sign * 0.511)], self.TOLERANCE)
        assert found is not None
        assert found.startswith("row 1, position 7: the distance of id 3")
        assert "1.0000 in the cache and" in found

    def test_a_large_mean_difference_is_a_disagreement(self) -> None:
        allowed = 0.1 + 1 / 256
        assert disagreement([difference(NEXT, 0, allowed - 1e-6)] * 9, self.TOLERANCE) is None
        assert disagreement([difference(NEXT, 0, allowed + 1e-6)] * 9, self.TOLERANCE) is not None

    def test_a_non_finite_difference_is_a_disagreement(self) -> None:
        found = disagreement([difference(NEXT, 0.0, float("inf"))], self.TOLERANCE)
        assert found is not None

    def test_lower_precision_has_a_wider_tolerance(self) -> None:
        means = [TOLERANCES[name].mean for name in ("float32", "float16", "bfloat16")]
        assert means == sorted(means)
