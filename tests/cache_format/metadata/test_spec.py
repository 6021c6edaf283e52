"""What a spec allows, its identity, and how two of them are told apart."""

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest

from cache_format.metadata.spec import CacheSpec, differences
from cache_format.metadata.spec_parts.sketch import SketchSpec
from tests.support.sample_cache import (
    drawn_targets,
    pca_sketch,
    sample_spec,
    sampled_targets,
)

SPEC = sample_spec()
DRAWN = sample_spec(targets=drawn_targets())
PCA = sample_spec(sketch=pca_sketch())
ROWS = sample_spec(validation_split="rows")
TEXT = replace(SPEC, corpus=replace(SPEC.corpus, special_tokens="text", text_documents="file"))


@pytest.mark.parametrize("spec", [SPEC, DRAWN, PCA, ROWS, TEXT])
def test_specs_round_trip_through_json(spec: CacheSpec) -> None:
    text = json.dumps(spec.to_json())
    assert CacheSpec.from_json(json.loads(text)) == spec


def test_unset_fields_are_left_out_of_the_json() -> None:
    new = {"num_draws", "draw_inverse_temperature"}
    assert not new & SPEC.to_json()["targets"].keys()
    assert new < DRAWN.to_json()["targets"].keys()
    assert "projection_sha256" not in SPEC.to_json()["sketch"]
    assert "projection_sha256" in PCA.to_json()["sketch"]
    assert "validation_split" not in SPEC.to_json()
    assert ROWS.to_json()["validation_split"] == "rows"
    assert not {"special_tokens", "text_documents"} & SPEC.to_json()["corpus"].keys()
    assert {"special_tokens", "text_documents"} < TEXT.to_json()["corpus"].keys()


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("targets", "num_draws"),
        ("targets", "draw_inverse_temperature"),
        ("sketch", "projection_sha256"),
        ("corpus", "special_tokens"),
        ("corpus", "text_documents"),
    ],
)
def test_an_explicit_null_for_an_omitted_field_is_refused(part: str, name: str) -> None:
    fields = SPEC.to_json()
    fields[part][name] = None
    with pytest.raises(ValueError, match=f"{part}.{name}: expected .*, found None"):
        CacheSpec.from_json(fields)
    with pytest.raises(ValueError, match=r"validation_split: expected .*, found None"):
        CacheSpec.from_json(SPEC.to_json() | {"validation_split": None})


def test_the_format_version_is_the_lowest_that_supports_the_spec() -> None:
    for old in (SPEC, sample_spec(with_sketch=False), sample_spec(targets=sampled_targets())):
        assert old.format_version == "1.0"
    for new in (
        DRAWN,
        PCA,
        sample_spec(targets=sampled_targets(inverse_temperatures=(0.5,))),
        replace(SPEC, sketch=replace(SPEC.sketch, hidden_states="last")),
    ):
        assert new.format_version == "1.1"
    assert ROWS.format_version == replace(ROWS, targets=DRAWN.targets).format_version == "1.2"
    for corpus in (
        replace(SPEC.corpus, special_tokens="text"),
        replace(SPEC.corpus, text_documents="paragraph"),
    ):
        assert replace(SPEC, corpus=corpus).format_version == "1.2"
        assert replace(DRAWN, corpus=corpus).format_version == "1.2"


def test_cache_id_is_the_hash_of_the_canonical_spec() -> None:
    assert SPEC.cache_id == "0a380bd5c372c4b0aa04712be4c0b8ecfb0da6ad5c1fd420104c8baaba7869b9"
    assert SPEC.cache_id == hashlib.sha256(SPEC.canonical_json()).hexdigest()
    assert b" " not in SPEC.canonical_json()
    assert json.loads(SPEC.canonical_json()) == SPEC.to_json()


def test_cache_id_does_not_depend_on_how_a_number_was_written() -> None:
    targets = replace(SPEC.targets, keep_mass=1, inverse_temperatures=(1,), log_step=1)
    same = replace(SPEC.targets, keep_mass=1.0, inverse_temperatures=(1.0,), log_step=1.0)
    assert sample_spec(targets=targets).cache_id == sample_spec(targets=same).cache_id


@pytest.mark.parametrize(
    "changed",
    [
        replace(SPEC, seed=8),
        replace(SPEC, validation_split="rows"),
        replace(SPEC, rows_per_batch=3),
        replace(SPEC, teacher=replace(SPEC.teacher, revision="r2")),
        replace(SPEC, corpus=replace(SPEC.corpus, files=())),
        replace(SPEC, corpus=replace(SPEC.corpus, special_tokens="text")),
        replace(SPEC, corpus=replace(SPEC.corpus, text_documents="paragraph")),
        replace(SPEC, targets=replace(SPEC.targets, num_levels=127)),
        replace(SPEC, targets=replace(SPEC.targets, log_step=1 / 8)),
        replace(SPEC, targets=replace(SPEC.targets, ranks_sha256="0" * 64)),
        replace(SPEC, sketch=replace(SPEC.sketch, hidden_states="last")),
        replace(SPEC, sketch=replace(SPEC.sketch, dtype="float16")),
    ],
)
def test_every_field_changes_the_cache_id(changed: CacheSpec) -> None:
    assert changed.cache_id != SPEC.cache_id
    assert len(differences(SPEC, changed)) == 1


@pytest.mark.parametrize(
    ("spec", "changed"),
    [
        (DRAWN, replace(DRAWN, targets=drawn_targets(num_draws=10))),
        (DRAWN, replace(DRAWN, targets=drawn_targets(draw_inverse_temperature=0.75))),
        (PCA, replace(PCA, sketch=pca_sketch(projection_sha256="0" * 64))),
    ],
)
def test_every_field_of_later_kinds_changes_the_cache_id(
    spec: CacheSpec, changed: CacheSpec
) -> None:
    assert changed.cache_id != spec.cache_id
    assert len(differences(spec, changed)) == 1


def test_differences_name_fields_that_only_one_spec_has() -> None:
    assert differences(SPEC, DRAWN) == [
        "targets.kind: expected 'top_k', found 'top_k+sampled'",
        "targets.num_draws: expected None, found 9",
        "targets.draw_inverse_temperature: expected None, found 0.5",
    ]
    assert differences(PCA, SPEC)[-1].endswith(", found None")


def test_differences_name_dotted_fields_and_both_values() -> None:
    other = replace(
        SPEC,
        seed=8,
        teacher=replace(SPEC.teacher, revision="r2"),
        sketch=SketchSpec(kind="none", dim=0),
    )
    assert differences(SPEC, other) == [
        "teacher.revision: expected 'r1', found 'r2'",
        "sketch.kind: expected 'rademacher', found 'none'",
        "sketch.dim: expected 8, found 0",
        "seed: expected 7, found 8",
    ]
    assert differences(SPEC, SPEC) == []


def test_every_nth_unit_is_validation() -> None:
    splits = [SPEC.split_of(unit) for unit in range(5)]
    assert splits == ["validation", "train", "train", "validation", "train"]


BOUNDS: list[tuple[str, str, list[Any], list[Any]]] = [
    ("", "sequence_length", [2, 65_535], [1, 65_536]),
    ("", "validation_every", [2], [1]),
    ("", "validation_split", [None, "rows"], ["", "units"]),
    ("", "rows_per_batch", [1, 65_535], [0, 65_536]),
    ("", "seed", [0, 2**63 - 1], [-1, 2**63]),
    ("teacher", "hidden_size", [1], [0]),
    ("teacher", "num_layers", [1], [0]),
    ("teacher", "vocab_size", [5, 48], [49]),
    ("teacher", "head_rows", [40, 2**24], [39, 2**24 + 1]),
    ("teacher", "eos_token_id", [0, 39], [-1, 40]),
    ("corpus", "documents_per_unit", [1], [0]),
    ("corpus", "special_tokens", [None, "text"], ["", "control"]),
    ("corpus", "text_documents", [None, "paragraph", "file"], ["", "line"]),
    ("targets", "top_k", [1, 40], [0, 65_536]),
    ("targets", "keep_mass", [0.01, 1.0], [0.0, 1.01]),
    (
        "targets",
        "inverse_temperatures",
        [(1.0,), tuple(n / 8 for n in range(1, 9))],
        [(), (0.5,), (0.0, 1.0), (0.5, 0.5, 1.0), (1.0, 0.5), tuple(n / 9 for n in range(1, 10))],
    ),
    ("targets", "kind", ["top_k"], ["", "samples"]),
    ("targets", "num_levels", [2, 255], [1, 256]),
    ("targets", "log_step", [2**-10, 1.0], [2**-11, 2.0, 0.3, 0.0, -0.5]),
    ("targets", "ranks_sha256", ["0" * 64, "f" * 64], ["", "0" * 63, "0" * 65, "F" * 64]),
    ("sketch", "dim", [1, 65_535], [0, 65_536]),
    ("sketch", "kind", ["rademacher"], ["gauss", "none", "pca"]),
    ("sketch", "dtype", ["int8", "float16", "float32"], ["", "bfloat16"]),
    ("targets", "num_draws", [None], [1, 0]),
    ("targets", "draw_inverse_temperature", [None], [0.5, 1.0]),
    ("sketch", "projection_sha256", [None], ["0" * 64]),
    (
        "sketch",
        "hidden_states",
        [
            *("mean_over_layers", "last", "layers:1", "layers:2", "layers:1,2"),
            *("random_layers:1", "random_layers:2"),
        ],
        [
            *("", "first", "Last", "last ", "layers:", "layers:0", "layers:3", "layers:1,3"),
            *("layers:2,1", "layers:1,1", "layers:1,", "layers:01", "layers: 1", "layers:1e0"),
            *("layers:\u0661", "random_layers:0", "random_layers:3", "random_layers:"),
            "random_layers:1,2",
        ],
    ),
]


@pytest.mark.parametrize(("part", "name", "good", "bad"), BOUNDS)
def test_fields_out_of_bounds_are_refused(
    part: str, name: str, good: list[Any], bad: list[Any]
) -> None:
    def with_value(value: Any) -> CacheSpec:
        if part == "":
            return replace(SPEC, **{name: value})
        return replace(SPEC, **{part: replace(getattr(SPEC, part), **{name: value})})

    for value in good:
        with_value(value)
    for value in bad:
        with pytest.raises(ValueError, match="must be"):
            with_value(value)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("inverse_temperatures", (1.0,), (0.5, 1.0)),
        ("inverse_temperatures", (0.5,), (0.0,)),
        ("inverse_temperatures", (1e-9,), (1.0 + 2**-52,)),
        ("inverse_temperatures", (1.0,), ()),
        ("keep_mass", 1.0, 0.9),
        ("top_k", 20, 21),
    ],
)
def test_fields_of_sampled_targets_out_of_bounds_are_refused(
    name: str, good: Any, bad: Any
) -> None:
    targets = sampled_targets(num_levels=20)
    replace(targets, **{name: good})
    with pytest.raises(ValueError, match=f"{name}: must be .*(sampled|draws)"):
        replace(targets, **{name: bad})


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("num_draws", 1, 0),
        ("num_draws", 255, 256),
        ("num_draws", 9, None),
        ("draw_inverse_temperature", 0.75, 0.8),
        ("draw_inverse_temperature", 1.0, None),
    ],
)
def test_fields_of_tail_samples_out_of_bounds_are_refused(name: str, good: Any, bad: Any) -> None:
    replace(DRAWN.targets, **{name: good})
    with pytest.raises(ValueError, match=f"{name}: must be .*top_k.sampled"):
        replace(DRAWN.targets, **{name: bad})


def test_principal_components_out_of_bounds_are_refused() -> None:
    assert replace(PCA, sketch=pca_sketch(dim=16)).sketch.dim == 16
    with pytest.raises(ValueError, match=r"sketch.dim: must be at most 16 where kind is 'pca'"):
        replace(PCA, sketch=pca_sketch(dim=17))
    wide = replace(PCA.teacher, hidden_size=2**14)
    assert replace(PCA, teacher=wide, sketch=pca_sketch(dim=2**10)).sketch.dim == 2**10
    with pytest.raises(ValueError, match=r"sketch.dim: must be at most 1024 .*16384"):
        replace(PCA, teacher=wide, sketch=pca_sketch(dim=2**10 + 1))
    for wrong in (None, "", "0" * 63, "F" * 64):
        with pytest.raises(ValueError, match="projection_sha256: must be 64 hex digits where"):
            pca_sketch(projection_sha256=wrong)


def test_top_k_beyond_the_vocabulary_is_refused() -> None:
    targets = replace(SPEC.targets, top_k=41)
    with pytest.raises(ValueError, match=r"targets.top_k: must be at most .*vocab_size \(40\)"):
        replace(SPEC, targets=targets)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "7"}, "seed: expected int, found '7'"),
        ({"seed": True}, "seed: expected int, found True"),
        ({"seed": 1.0}, "seed: expected int"),
        ({"extra": 1}, "extra: not a known field"),
        ({"teacher": []}, r"teacher: expected an object, found \[\]"),
        ({"teacher": {}}, "teacher.attention: missing"),
        ({"sketch": {"kind": "x", "hidden_states": "", "dim": 1, "dtype": "int8"}}, "sketch.kind"),
        (
            {"sketch": {"kind": "none", "hidden_states": "", "dim": 0, "dtype": "int4"}},
            "sketch.dtype: .*'int4'",
        ),
        ({"targets": SPEC.to_json()["targets"] | {"kind": "top_p"}}, "targets.kind: .*'top_p'"),
        ({"targets": SPEC.to_json()["targets"] | {"keep_mass": 10**400}}, "targets.keep_mass"),
        ({"targets": SPEC.to_json()["targets"] | {"log_step": float("nan")}}, "log_step"),
    ],
)
def test_from_json_names_the_invalid_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CacheSpec.from_json(SPEC.to_json() | change)


def test_from_json_needs_an_object() -> None:
    with pytest.raises(ValueError, match="expected an object, found None"):
        CacheSpec.from_json(None)


def test_a_row_too_large_for_memory_is_refused() -> None:
    wide = replace(SPEC.sketch, dim=2**13)
    assert replace(SPEC, sequence_length=2**13, sketch=wide).sketch.dim == 2**13
    with pytest.raises(ValueError, match=r"sketch.dim: must be at most 67108864 / sequence_length"):
        replace(SPEC, sequence_length=2**13 + 1, sketch=wide)
    teacher = replace(SPEC.teacher, vocab_size=2**14, head_rows=2**14)
    many = replace(SPEC.targets, top_k=2**13)
    assert replace(SPEC, teacher=teacher, targets=many, sequence_length=2**13)
    with pytest.raises(ValueError, match=r"targets.top_k: must be at most 67108864"):
        replace(SPEC, teacher=teacher, targets=many, sequence_length=2**13 + 1)
