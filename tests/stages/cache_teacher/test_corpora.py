"""Several corpora in one cache: shares, order, names, and what is refused."""

import random
from pathlib import Path
from typing import Any

import pytest

import cache_format
from cache_format.metadata.manifest import Manifest
from cache_format.tools.merge import merge
from cache_format.tools.verify import verify
from stages.cache_teacher.config import UnitRange
from stages.cache_teacher.corpus.corpora import CorpusUnits
from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.corpus_settings import CorpusSettings
from stages.cache_teacher.reporting.summary import corpus_figures
from stages.cache_teacher.setup import first_unit
from stages.cache_teacher.setup.hidden_fit import fit_transform
from stages.cache_teacher.worker_share import WorkerShare
from tests.support.corpora import two_corpora
from tests.support.stage_one_runs import Bench, rows_by_unit, shard_bytes
from tests.support.tiny import tiny_texts, write_fineweb_parquet

BUDGET = 6_000


@pytest.fixture
def corpora(tmp_path: Path) -> tuple[CorpusSettings, ...]:
    """Three quarters "web", one quarter "math"."""
    return two_corpora(tmp_path)


def run(bench: Bench, out: str = "cache", **changes: Any) -> Manifest:
    return bench.run(out, **({"num_tokens": BUDGET} | changes))


def test_tokens_are_shared_as_asked_and_units_keep_the_name(
    bench: Bench, corpora: tuple[CorpusSettings, ...]
) -> None:
    manifest = run(bench, corpora=corpora)
    figures = corpus_figures(manifest)
    assert figures is not None
    assert manifest.complete
    assert abs(figures["math"]["share"] - 0.25) < 0.05
    assert {name: sum(found["tokens"].values()) for name, found in figures.items()} == {
        name: sum(e.num_tokens for e in manifest.shards if e.corpus == name)
        for name in ("web", "math")
    }
    for entry in manifest.shards:
        assert entry.corpus_position.startswith(f"{entry.corpus}: {entry.corpus}.")
    assert verify(bench.open()) == []


def test_a_unit_holds_what_a_cache_of_its_corpus_alone_holds(
    bench: Bench, corpora: tuple[CorpusSettings, ...]
) -> None:
    run(bench, corpora=corpora)
    mixed = bench.open()
    own = [entry for entry in mixed.manifest.shards if entry.corpus == "math"]
    alone = {"corpus": corpora[1].corpus, "text_column": "body", "documents_per_unit": 4}
    config_changes = {key: value for key, value in alone.items() if key != "corpus"}
    bench.corpus = Path(str(alone["corpus"]))
    run(bench, "alone", units=UnitRange(end=len(own)), **config_changes)
    with_manifest = cache_format.open(bench.root / "alone", allow_incomplete=True)
    for ours, theirs in zip(own, with_manifest.manifest.shards, strict=True):
        assert ours.split == theirs.split  # every n-th unit of each corpus is validation
        for number in range(ours.num_rows):
            one = mixed.read_row_of(ours, number).token_ids
            assert one.tolist() == with_manifest.read_row_of(theirs, number).token_ids.tolist()


def test_restarted_extended_and_divided_runs_make_the_same_units(
    bench: Bench, corpora: tuple[CorpusSettings, ...]
) -> None:
    run(bench, corpora=corpora)
    run(bench, "extended", corpora=corpora, num_tokens=BUDGET // 3)
    run(bench, "extended", corpora=corpora)
    for worker in range(2):
        run(bench, "divided", corpora=corpora, units=WorkerShare(worker=worker, num_workers=2))
    whole = shard_bytes(bench.root / "cache")
    assert len(whole) > 8
    assert shard_bytes(bench.root / "extended") == whole
    assert shard_bytes(bench.root / "divided") == whole
    run(bench, "first", corpora=corpora, units=UnitRange(end=5))
    run(bench, "rest", corpora=corpora, units=UnitRange(first=5, end=len(whole)))
    parts = [
        cache_format.open(bench.root / name, allow_incomplete=True) for name in ("first", "rest")
    ]
    merge(parts, bench.root / "merged")
    assert shard_bytes(bench.root / "merged") == whole
    for name in ("divided", "extended", "merged"):
        assert bench.open(name).manifest == bench.open().manifest


def test_order_is_that_of_the_spec_and_does_not_depend_on_what_was_made(
    bench: Bench, corpora: tuple[CorpusSettings, ...]
) -> None:
    manifest = run(bench, corpora=corpora)
    spec = manifest.spec
    assert spec.corpora is not None
    units = list(range(1_000))
    random.Random(0).shuffle(units)
    places = {unit: spec.place_of(unit) for unit in units}
    for number in range(2):
        own = [places[unit].number for unit in sorted(units) if places[unit].corpus == number]
        assert own == list(range(len(own)))
    assert type(spec).from_json(spec.to_json()) == spec


def test_the_corpus_that_ends_first_ends_the_cache_and_is_named(
    bench: Bench, corpora: tuple[CorpusSettings, ...], tmp_path: Path
) -> None:
    write_fineweb_parquet(tmp_path / "web.parquet", tiny_texts(45))
    manifest = run(bench, corpora=corpora, num_tokens=10**6)
    own = [entry for entry in manifest.shards if entry.corpus == "web"]
    assert manifest.complete
    assert manifest.is_whole_corpus
    assert len(own) == 5
    (sentence,) = [r.message for r in bench.reports if "has ended" in r.message]
    tokens = sum(entry.num_tokens for entry in own)
    assert f"corpus web has ended after 5 units with {tokens:,} tokens" in sentence
    for worker in range(3):  # none goes on after the end of another one's unit
        units = WorkerShare(worker=worker, num_workers=3)
        divided = run(bench, "divided", corpora=corpora, num_tokens=10**6, units=units)
    assert divided == manifest


def test_no_unit_is_looked_for_that_the_budget_does_not_need(
    bench: Bench, corpora: tuple[CorpusSettings, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    ended_before = CorpusUnits.ended_before

    def noted(self: CorpusUnits, unit: int) -> Any:
        asked.append(unit)
        return ended_before(self, unit)

    monkeypatch.setattr(CorpusUnits, "ended_before", noted)
    several: dict[str, Any] = {"corpora": corpora}
    for changes in (several, {}):
        manifest = run(bench, f"cache-{len(changes)}", num_tokens=BUDGET // 3, **changes)
        assert max(asked) == len(manifest.shards) - 1
        asked.clear()


def test_other_shares_and_names_are_another_cache(
    bench: Bench, corpora: tuple[CorpusSettings, ...]
) -> None:
    run(bench, corpora=corpora)
    other = (corpora[0], CorpusSettings(**{**vars(corpora[1]), "weight": 2.0}))
    with pytest.raises(cache_format.errors.SpecMismatchError, match=r"corpora\[1\]\.weight"):
        run(bench, corpora=other)
    with pytest.raises(cache_format.errors.SpecMismatchError, match=r"corpora\[0\]\.name"):
        run(bench, corpora=corpora[::-1])


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"name": "web"}, "web: 2 entries have this name"),
        ({"weight": 0.0}, "math: weight: must be above 0"),
        ({"weight": -1.0}, "math: weight: must be above 0"),
        ({"tokens": 5}, "must have either weight or tokens, found both"),
        ({"weight": None}, "must have either weight or tokens, found neither"),
        ({"weight": None, "tokens": 5}, "web has a weight and math a number of tokens"),
        ({"name": "a/b"}, "name: must be 1 to 40 letters"),
        ({"documents_per_unit": 0}, "math: documents_per_unit: must be 1 or more"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_read(
    bench: Bench, corpora: tuple[CorpusSettings, ...], second: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(bench, corpora=(corpora[0], CorpusSettings(**{**vars(corpora[1]), **second})))
    with pytest.raises(ValueError, match="must be two or more"):
        run(bench, corpora=corpora[:1])


def test_numbers_of_tokens_are_shares_and_at_least_that_is_cached(
    bench: Bench, corpora: tuple[CorpusSettings, ...]
) -> None:
    of_tokens = tuple(
        CorpusSettings(**{**vars(entry), "weight": None, "tokens": tokens})
        for entry, tokens in zip(corpora, (4_500, 1_500), strict=True)
    )
    asked = run(bench, corpora=corpora)
    assert run(bench, "by-tokens", corpora=of_tokens) == asked
    with pytest.raises(ValueError, match="num_tokens: must be 6000, the sum"):
        run(bench, "less", corpora=of_tokens, num_tokens=5_999)


def test_a_corpus_that_would_have_no_turn_is_named(
    bench: Bench, corpora: tuple[CorpusSettings, ...]
) -> None:
    rare = CorpusSettings(**{**vars(corpora[1]), "weight": 1e-5})
    with pytest.raises(ValueError, match="corpora: math: so little of it is asked for"):
        run(bench, corpora=(corpora[0], rare))


def test_a_corpus_that_ends_before_another_s_turn_is_named(
    bench: Bench, corpora: tuple[CorpusSettings, ...], tmp_path: Path
) -> None:
    write_fineweb_parquet(tmp_path / "web.parquet", tiny_texts(8))
    with pytest.raises(
        ValueError, match=r"corpora: web: has only 1 unit of .*before the first unit of math\. Give"
    ):
        run(bench, corpora=corpora)
    assert not (tmp_path / "cache").exists()


def test_what_is_fitted_is_fitted_to_all_corpora_by_their_shares(
    bench: Bench, corpora: tuple[CorpusSettings, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[PackedUnit] = []

    def recorded(teacher: Any, packed: PackedUnit, *rest: Any) -> Any:
        fitted.append(packed)
        return fit_transform(teacher, packed, *rest)

    monkeypatch.setattr(first_unit, "fit_transform", recorded)
    run(bench, corpora=corpora, targets="hidden", hidden_kl=0.1)
    cache = bench.open()
    corpus_of = {entry.unit: entry.corpus for entry in cache.manifest.shards}
    corpora_of_rows = {
        row.tokens.token_ids.tobytes(): corpus_of[unit] for unit, row in rows_by_unit(cache)
    }
    turns = [corpora_of_rows[ids.tobytes()] for ids in fitted[0].token_ids_RT[:8]]
    assert turns == ["web", "web", "math", "web"] * 2
