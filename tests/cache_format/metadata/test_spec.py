"""What a spec allows, its identity, and how two of them are told apart."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cache_format.metadata.spec import CacheSpec, differences
from cache_format.metadata.spec_parts.corpus import CorpusShare
from cache_format.metadata.spec_parts.sketch import SketchSpec
from cache_format.metadata.spec_parts.targets import TargetSpec
from tests.support import second_reader
from tests.support.sample_cache import (
    drawn_targets,
    hidden_targets,
    pca_sketch,
    sample_spec,
    sampled_targets,
    top_k_hidden_targets,
    top_k_targets,
)

SPEC = sample_spec()
DRAWN = sample_spec(targets=drawn_targets())
PCA = sample_spec(sketch=pca_sketch())
ROWS = sample_spec(validation_split="rows")
TEXT = replace(SPEC, corpus=replace(SPEC.sole_corpus, text_documents="file"))
SAMPLED = sample_spec(targets=sampled_targets())
HIDDEN = sample_spec(targets=hidden_targets())
BOTH = sample_spec(targets=top_k_hidden_targets())


@pytest.mark.parametrize("spec", [SPEC, DRAWN, SAMPLED, HIDDEN, BOTH, PCA, ROWS, TEXT])
def test_specs_round_trip_through_json(spec: CacheSpec) -> None:
    text = json.dumps(spec.to_json())
    assert CacheSpec.from_json(json.loads(text)) == spec


def test_unset_fields_are_left_out_of_the_json() -> None:
    assert SPEC.to_json()["targets"].keys() == {"kind", "kept", "log_step"}
    assert SAMPLED.to_json()["targets"].keys() == {"kind", "draws", "log_step"}
    assert DRAWN.to_json()["targets"].keys() == {"kind", "kept", "draws", "log_step"}
    assert HIDDEN.to_json()["targets"].keys() == {"kind", "hidden", "log_step"}
    assert BOTH.to_json()["targets"].keys() == {"kind", "kept", "hidden", "log_step"}
    assert "projection_sha256" not in SPEC.to_json()["sketch"]
    assert "projection_sha256" in PCA.to_json()["sketch"]
    assert "text_documents" not in SPEC.to_json()["corpus"]
    assert TEXT.to_json()["corpus"]["text_documents"] == "file"


def test_what_is_validation_is_always_written() -> None:
    assert SPEC.to_json()["validation_split"] == "units"
    assert ROWS.to_json()["validation_split"] == "rows"
    fields = SPEC.to_json()
    del fields["validation_split"]
    with pytest.raises(ValueError, match=r"^validation_split: missing"):
        CacheSpec.from_json(fields)


@pytest.mark.parametrize("spec", [SPEC, HIDDEN, BOTH])
def test_the_step_of_logarithms_is_there_for_every_kind(spec: CacheSpec) -> None:
    fields = spec.to_json()
    del fields["targets"]["log_step"]
    with pytest.raises(ValueError, match=r"^targets\.log_step: missing"):
        CacheSpec.from_json(fields)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("targets", "kept"),
        ("targets", "draws"),
        ("targets", "hidden"),
        ("sketch", "projection_sha256"),
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


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("top_k", "k"),
        ("sampled", "d"),
        ("top_k+sampled", "kd"),
        ("hidden", "h"),
        ("top_k+hidden", "kh"),
    ],
)
def test_each_kind_of_target_has_its_parts_and_no_others(kind: Any, parts: str) -> None:
    kept, draws, hidden = DRAWN.targets.kept, DRAWN.targets.draws, HIDDEN.targets.hidden
    for given in ("", "k", "d", "h", "kd", "kh", "dh", "kdh"):
        fields: dict[str, Any] = {
            "kept": kept if "k" in given else None,
            "draws": draws if "d" in given else None,
            "hidden": hidden if "h" in given else None,
        }
        if given == parts:
            targets = TargetSpec(kind=kind, **fields)
            assert {name: getattr(targets, name) for name in fields} == fields
            continue
        match = r"^(kept|draws|hidden): must be (there where|left out)"
        with pytest.raises(ValueError, match=match) as e:
            TargetSpec(kind=kind, **fields)
        wrong = next(name for name in fields if (name[0] in given) != (name[0] in parts))
        assert str(e.value).startswith(wrong)
        assert ("left out" in str(e.value)) == (fields[wrong] is not None)


def test_parts_of_targets_that_are_missing_or_too_many_are_refused_in_json() -> None:
    fields = DRAWN.to_json()
    without = {name: value for name, value in fields["targets"].items() if name != "draws"}
    with pytest.raises(ValueError, match=r"draws: must be there where kind is 'top_k\+sampled'"):
        CacheSpec.from_json(fields | {"targets": without})
    with pytest.raises(ValueError, match=r"draws: must be left out"):
        CacheSpec.from_json(fields | {"targets": fields["targets"] | {"kind": "top_k"}})
    more = fields["targets"] | {"other": {}}
    with pytest.raises(ValueError, match=r"^targets\.other: not a known field"):
        CacheSpec.from_json(fields | {"targets": more})
    for part, name in (("kept", "top_k"), ("draws", "num_draws")):
        less = {key: value for key, value in fields["targets"][part].items() if key != name}
        with pytest.raises(ValueError, match=rf"^targets\.{part}\.{name}: missing"):
            CacheSpec.from_json(fields | {"targets": fields["targets"] | {part: less}})


def test_the_nodes_of_samples_are_the_temperature_that_they_are_drawn_at() -> None:
    assert SPEC.targets.inverse_temperatures == (0.5, 0.75, 1.0)
    assert DRAWN.targets.inverse_temperatures == (0.5, 0.75, 1.0)
    assert sampled_targets(inverse_temperature=0.25).inverse_temperatures == (0.25,)


def test_cache_id_is_the_hash_of_the_canonical_spec() -> None:
    assert SPEC.cache_id == "1226d77dd347cef05a7827eae87888d136bb3903c05404b359a5cfff8f8af6ce"
    assert SPEC.cache_id == hashlib.sha256(SPEC.canonical_json()).hexdigest()
    assert b" " not in SPEC.canonical_json()
    assert json.loads(SPEC.canonical_json()) == SPEC.to_json()


def test_cache_id_does_not_depend_on_how_a_number_was_written() -> None:
    targets = replace(top_k_targets(keep_mass=1, inverse_temperatures=(1,)), log_step=1)
    same = replace(top_k_targets(keep_mass=1.0, inverse_temperatures=(1.0,)), log_step=1.0)
    assert sample_spec(targets=targets).cache_id == sample_spec(targets=same).cache_id


@pytest.mark.parametrize(
    "changed",
    [
        replace(SPEC, seed=8),
        replace(SPEC, validation_split="rows"),
        replace(SPEC, rows_per_batch=3),
        replace(SPEC, teacher=replace(SPEC.teacher, revision="r2")),
        replace(SPEC, corpus=replace(SPEC.sole_corpus, files=())),
        replace(SPEC, corpus=replace(SPEC.sole_corpus, text_documents="paragraph")),
        replace(SPEC, targets=top_k_targets(num_levels=127)),
        replace(SPEC, targets=top_k_targets(keep_mass=0.8)),
        replace(SPEC, targets=replace(SPEC.targets, log_step=1 / 8)),
        replace(SPEC, ranks_sha256="0" * 64),
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
        (DRAWN, replace(DRAWN, targets=drawn_targets(inverse_temperature=0.75))),
        (SAMPLED, replace(SAMPLED, targets=sampled_targets(num_draws=49))),
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
        "targets.draws.num_draws: expected None, found 9",
        "targets.draws.inverse_temperature: expected None, found 0.5",
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
    ("", "validation_split", ["units", "rows"], ["", "shards", None]),
    ("", "rows_per_batch", [1, 65_535], [0, 65_536]),
    ("", "seed", [0, 2**63 - 1], [-1, 2**63]),
    ("teacher", "hidden_size", [1], [0]),
    ("teacher", "num_layers", [1], [0]),
    ("teacher", "vocab_size", [5, 48], [49]),
    ("teacher", "head_rows", [40, 2**24], [39, 2**24 + 1]),
    ("teacher", "eos_token_id", [0, 39], [-1, 40]),
    ("corpus", "documents_per_unit", [1], [0]),
    ("corpus", "text_documents", [None, "paragraph", "file"], ["", "line"]),
    ("kept", "top_k", [1, 40], [0, 65_536]),
    ("kept", "keep_mass", [0.01, 1.0], [0.0, 1.01]),
    (
        "kept",
        "inverse_temperatures",
        [(1.0,), tuple(n / 8 for n in range(1, 9))],
        [(), (0.5,), (0.0, 1.0), (0.5, 0.5, 1.0), (1.0, 0.5), tuple(n / 9 for n in range(1, 10))],
    ),
    ("targets", "kind", ["top_k"], ["", "samples", "sampled", "top_k+sampled"]),
    ("kept", "num_levels", [2, 255], [1, 256]),
    ("targets", "log_step", [2**-10, 1.0], [2**-11, 2.0, 0.3, 0.0, -0.5]),
    ("", "ranks_sha256", ["0" * 64, "f" * 64], ["", "0" * 63, "0" * 65, "F" * 64]),
    ("sketch", "dim", [1, 65_535], [0, 65_536]),
    ("sketch", "kind", ["rademacher"], ["gauss", "none", "pca"]),
    ("sketch", "dtype", ["int8", "float16", "float32"], ["", "bfloat16"]),
    ("targets", "kept", [], [None]),
    ("targets", "draws", [None], [sampled_targets().draws]),
    ("sketch", "projection_sha256", [None], ["0" * 64]),
    (
        "sketch",
        "hidden_states",
        [
            *("mean_over_layers", "last", "layers:1", "layers:2", "layers:1,2"),
            *("random_layers:1", "random_layers:2", "each:1", "each:2", "each:1,2"),
        ],
        [
            *("", "first", "Last", "last ", "layers:", "layers:0", "layers:3", "layers:1,3"),
            *("layers:2,1", "layers:1,1", "layers:1,", "layers:01", "layers: 1", "layers:1e0"),
            *("layers:\u0661", "random_layers:0", "random_layers:3", "random_layers:"),
            *("random_layers:1,2", "each:", "each:0", "each:3", "each:1,3", "each:2,1"),
            *("each:1,1", "each:1,", "each:01", "each", "each:1;2"),
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
        if part == "kept":
            return replace(SPEC, targets=top_k_targets(**{name: value}))
        return replace(SPEC, **{part: replace(getattr(SPEC, part), **{name: value})})

    for value in good:
        with_value(value)
    for value in bad:
        with pytest.raises(ValueError, match="must be"):
            with_value(value)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("inverse_temperature", 1.0, 1.0 + 2**-52),
        ("inverse_temperature", 1e-9, 0.0),
        ("inverse_temperature", 0.5, -0.5),
        ("num_draws", 1, 0),
        ("num_draws", 255, 256),
    ],
)
def test_fields_of_draws_out_of_bounds_are_refused(name: str, good: Any, bad: Any) -> None:
    sampled_targets(**{name: good})
    with pytest.raises(ValueError, match=f"^{name}: must be"):
        sampled_targets(**{name: bad})


def test_draws_of_the_tail_are_at_a_node_of_the_kept_logits() -> None:
    """Only there is the tail's mass known."""
    for node in (0.5, 0.75, 1.0):
        assert drawn_targets(inverse_temperature=node).sampling.inverse_temperature == node
    for other in (0.8, 0.25):
        with pytest.raises(ValueError, match=r"draws\.inverse_temperature: must be one of kept\."):
            drawn_targets(inverse_temperature=other)
    assert sampled_targets(inverse_temperature=0.8)


@pytest.mark.parametrize(
    ("hidden_states", "num_states", "layers"),
    [
        ("mean_over_layers", 1, ()),
        ("last", 1, ()),
        ("layers:1,2", 1, (1, 2)),
        ("random_layers:2", 1, (2,)),
        ("each:2", 1, (2,)),
        ("each:1,2", 2, (1, 2)),
        ("each:4,12,28", 3, (4, 12, 28)),
    ],
)
def test_only_each_layer_by_itself_gives_a_position_more_than_one_state(
    hidden_states: str, num_states: int, layers: tuple[int, ...]
) -> None:
    sketch = replace(SPEC.sketch, hidden_states=hidden_states)
    assert (sketch.num_states, sketch.named_layers) == (num_states, layers)


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
    for targets in (top_k_targets(top_k=41), drawn_targets(kept={"top_k": 41})):
        with pytest.raises(ValueError, match=r"kept\.top_k: must be at most .*vocab_size \(40\)"):
            replace(SPEC, targets=targets)
    assert replace(SPEC, targets=sampled_targets(num_draws=41))  # some of them more than once


def _with_kept(**changes: Any) -> dict[str, Any]:
    targets = SPEC.to_json()["targets"]
    return {"targets": targets | {"kept": targets["kept"] | changes}}


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
        ({"targets": SPEC.to_json()["targets"] | {"log_step": 10**400}}, "targets.log_step"),
        (_with_kept(keep_mass=10**400), r"targets\.kept\.keep_mass"),
        (_with_kept(top_k=5.0), r"targets\.kept\.top_k: expected int"),
        (_with_kept(inverse_temperatures=[]), "inverse_temperatures: must be 1 to 8"),
        ({"targets": SPEC.to_json()["targets"] | {"kept": []}}, r"kept: expected an object, found"),
        ({"ranks_sha256": "x"}, "^ranks_sha256: must be 64 hex digits"),
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
    both = replace(wide, dim=2**12, hidden_states="each:1,2")
    assert replace(SPEC, sequence_length=2**13, sketch=both).sketch.num_states == 2
    with pytest.raises(ValueError, match=r"sketch.dim: must be at most 67108864 / sequence_length"):
        replace(SPEC, sequence_length=2**13 + 1, sketch=both)
    teacher = replace(SPEC.teacher, vocab_size=2**14, head_rows=2**14)
    many = top_k_targets(top_k=2**13)
    assert replace(SPEC, teacher=teacher, targets=many, sequence_length=2**13)
    with pytest.raises(ValueError, match=r"targets\.kept\.top_k: must be at most 67108864"):
        replace(SPEC, teacher=teacher, targets=many, sequence_length=2**13 + 1)


def _of_corpora(*units: int, names: str = "abcdef") -> CacheSpec:
    corpora = tuple(
        CorpusShare(name=name, weight=1.0, units=number, corpus=SPEC.sole_corpus)
        for name, number in zip(names, units, strict=False)
    )
    return replace(SPEC, corpus=None, corpora=corpora)


@pytest.mark.parametrize("units", [(1, 1), (2, 1), (5, 3, 1), (4095, 1), (7, 7, 2)])
def test_order_of_corpora_is_that_of_the_readme(units: tuple[int, ...]) -> None:
    spec = _of_corpora(*units)
    for unit in [*range(40), 10**6]:
        expected = second_reader.place(spec.to_json(), unit)
        assert (spec.corpus_name_of(unit), spec.place_of(unit).number) == expected
    counts = [0] * len(units)
    for unit in range(60):
        assert spec.unit_order.counts(unit) == counts
        counts[spec.place_of(unit).corpus] += 1
    assert CacheSpec.from_json(spec.to_json()) == spec


def test_every_corpus_has_validation_units_of_its_own() -> None:
    spec = replace(_of_corpora(1, 1), validation_every=2)
    assert [spec.split_of(unit) for unit in range(4)] == [
        *("validation", "validation", "train", "train"),
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: replace(SPEC, corpus=None), "corpora: must be there if and only if corpus is not"),
        (lambda: replace(_of_corpora(1, 1), corpus=SPEC.corpus), "2 beside corpus"),
        (lambda: _of_corpora(1), "corpora: must be two or more"),
        (lambda: _of_corpora(1, 1, names="aa"), "corpora: must be of different names"),
        (lambda: _of_corpora(4096, 1), "corpora: must be of 4096 units or fewer, found 4097"),
        (lambda: _of_corpora(1, 0), "units: must be from 1 to 4096, found 0"),
        (lambda: _of_corpora(1, 1, names="a/"), "name: must be 1 to 40 letters"),
    ],
)
def test_corpora_that_no_cache_has_are_refused(
    wrong: Callable[[], CacheSpec], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()
