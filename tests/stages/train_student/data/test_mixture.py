"""Several caches as one: which may be mixed, in what order they are, and what they are called."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import cache_format
from cache_format.metadata.spec_parts.sketch import SketchSpec
from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.reader import Cache
from stages.train_student.data.mixable import require_mixable
from stages.train_student.data.mixture import mix
from stages.train_student.data.requirements import CacheNeeds
from tests.support.sample_cache import (
    drawn_targets,
    hidden_targets,
    sample_spec,
    sample_transform,
    top_k_targets,
    with_moment,
)
from tests.support.student_caches import write_cache

LOGITS = CacheNeeds(temperatures={"temperature_start": 1.0}, hidden_states_for=())
STATES = dataclasses.replace(LOGITS, hidden_states_for=("beta_start",))


@pytest.fixture
def web(tmp_path: Path) -> Cache:
    return write_cache(tmp_path / "web", top_k_targets())


def other(tmp_path: Path, targets: TargetSpec | None = None, **changes: Any) -> Cache:
    return write_cache(tmp_path / "math", targets or top_k_targets(), **({"seed": 8} | changes))


class TestMixing:
    def test_the_order_of_caches_is_that_of_their_ids(self, web: Cache, tmp_path: Path) -> None:
        math = other(tmp_path)
        one, same = mix([web, math], [0.4, 0.6]), mix([math, web], [0.6, 0.4])
        assert one == same
        assert [cache.cache_id for cache in one.caches] == sorted([web.cache_id, math.cache_id])
        assert dict(zip(one.caches, one.weights or (), strict=True)) == {web: 0.4, math: 0.6}
        assert one.cache_id == mix([web, math]).cache_id not in (web.cache_id, math.cache_id)

    def test_the_weight_of_one_cache_alone_means_nothing(self, web: Cache) -> None:
        assert mix([web], [0.4]) == mix([web])
        assert mix([web]).cache_id == web.cache_id

    def test_a_cache_given_twice_is_refused(self, web: Cache) -> None:
        with pytest.raises(ValueError, match=r"web: the same cache as .*web.*sum of the weights"):
            mix([web, cache_format.open(web.path)])

    def test_each_cache_needs_a_weight(self, web: Cache, tmp_path: Path) -> None:
        math = other(tmp_path)
        with pytest.raises(ValueError, match="1 weights for 2 caches"):
            mix([web, math], [1.0])
        with pytest.raises(ValueError, match="less than a millionth"):
            mix([web, math], [1.0, 1e-9])

    def test_caches_are_called_by_their_directories(self, web: Cache, tmp_path: Path) -> None:
        assert sorted(mix([web, other(tmp_path)]).labels()) == ["math", "web"]
        odd = write_cache(tmp_path / "a b=1", top_k_targets(), seed=9)
        assert mix([odd]).labels() == ("a-b-1",)

    def test_caches_of_one_name_are_told_apart_by_their_ids(
        self, web: Cache, tmp_path: Path
    ) -> None:
        second = write_cache(tmp_path / "second/web", top_k_targets(), seed=8)
        mixture = mix([web, second])
        assert mixture.labels() == tuple(f"web-{c.cache_id[:8]}" for c in mixture.caches)


class TestMixable:
    """``web`` has k = 5, temperatures 1 to 2, and a projection of 8 numbers on random signs."""

    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"seed": 9, "validation_every": 2},
            {"corpus": dataclasses.replace(sample_spec().sole_corpus, source="another")},
            {"sketch": SketchSpec(kind="none", dim=0)},
        ],
    )
    def test_caches_of_other_text_can_be_mixed(
        self, web: Cache, tmp_path: Path, changes: dict[str, Any]
    ) -> None:
        require_mixable(mix([web, other(tmp_path, **changes)]), LOGITS)

    def test_transforms_of_states_may_differ(self, tmp_path: Path) -> None:
        one = write_cache(tmp_path / "web", hidden_targets())
        transform = sample_transform(num_components=5)
        targets = hidden_targets(
            num_components=5,
            num_symbols=transform.code.num_symbols,
            num_classes=transform.code.num_classes,
            num_raw_bits=transform.code.num_raw_bits,
            transform_sha256=transform.sha256,
        )
        require_mixable(mix([one, other(tmp_path, targets, transform=transform)]), LOGITS)

    @pytest.mark.parametrize(
        ("targets", "changes", "named"),
        [
            (None, {"sequence_length": 14}, "cache_teacher.sequence_length is 1[24] and 1[24]"),
            (drawn_targets(), {}, "cache_teacher.targets is 'top_k"),
            (top_k_targets(top_k=4), {}, "cache_teacher.top_k is [45] and [45]"),
            (top_k_targets(keep_mass=0.8), {}, "cache_teacher.top_p is"),
            (
                top_k_targets(inverse_temperatures=(0.5, 1.0)),
                {},
                "cache_teacher.inverse_temperatures is",
            ),
            (with_moment(top_k_targets()), {}, "cache_teacher.tail_moment_dim is"),
            *(
                (None, {"teacher": {name: value}}, f"teacher.{name} is ")
                for name, value in {
                    "weights_sha256": "0" * 64,
                    "tokenizer_sha256": "0" * 64,
                    "dtype": "bfloat16",
                    "num_layers": 3,
                    "eos_token_id": 4,
                    "head_rows": 47,
                }.items()
            ),
        ],
    )
    def test_what_the_student_or_its_loss_relies_on_must_be_equal(
        self,
        web: Cache,
        tmp_path: Path,
        targets: TargetSpec | None,
        changes: dict[str, Any],
        named: str,
    ) -> None:
        if "teacher" in changes:
            teacher = dataclasses.replace(sample_spec().teacher, **changes["teacher"])
            changes = changes | {"teacher": teacher}
        mixture = mix([web, other(tmp_path, targets, **changes)])
        with pytest.raises(ValueError, match=rf"{named}.*") as refused:
            require_mixable(mixture, LOGITS)
        for cache in mixture.caches:
            assert str(cache.path) in str(refused.value)

    @pytest.mark.parametrize(
        ("sketch", "named"),
        [
            (SketchSpec(kind="rademacher", dim=4), "cache_teacher.hidden_projection_dim is"),
            (
                SketchSpec(kind="rademacher", dim=8, hidden_states="last"),
                "cache_teacher.hidden_states is",
            ),
            (SketchSpec(kind="none", dim=0), "cache_teacher.hidden_projection is"),
        ],
    )
    def test_projections_must_be_alike_where_the_loss_needs_them(
        self, web: Cache, tmp_path: Path, sketch: SketchSpec, named: str
    ) -> None:
        mixture = mix([web, other(tmp_path, sketch=sketch)])
        require_mixable(mixture, LOGITS)
        with pytest.raises(ValueError, match=named):
            require_mixable(mixture, STATES)

    def test_other_files_of_the_teacher_are_named(self, web: Cache, tmp_path: Path) -> None:
        second = other(tmp_path)
        files = {name: (1, "0" * 64) for name in second.attachments()}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(second, "attachments", lambda: files)
            with pytest.raises(ValueError, match="SHA-256 of teacher/embedding"):
                require_mixable(mix([web, second]), LOGITS)
