"""A comparison over a tiny teacher: what it finds is what theory says, and where it comes from."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.comparison import compared, probe
from pipeline.comparison.compare import Comparison, compare_targets
from pipeline.comparison.compared import Compared
from pipeline.reports.comparison_report import comparison_figures, comparison_text
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.estimate import estimate
from tests.support import tiny

_SETTINGS: tuple[dict[str, Any], ...] = (
    {"targets": "top_k", "top_k": 8},
    {"targets": "top_k", "top_k": 64},
    {"targets": "top_k", "top_k": 320},
    {"targets": "sampled", "num_samples": 50},
    {"targets": "top_k+sampled", "top_k": 8, "num_samples": 50},
    {"targets": "hidden", "hidden_kl": 0.2},
    {"targets": "hidden", "hidden_kl": 0.02},
    {"targets": "top_k+hidden", "top_k": 8, "hidden_kl": 0.2},
    {"targets": "top_k", "top_k": 8, "tail_moment_dim": 8},
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CacheTeacherConfig:
    directory = tmp_path_factory.mktemp("compare")
    teacher = tiny.save_tiny_teacher(directory / "teacher")
    corpus = tiny.write_fineweb_parquet(directory / "corpus.parquet", tiny.tiny_texts(200))
    return tiny.tiny_cache_config(teacher, corpus, num_tokens=10_000)


@pytest.fixture(scope="module")
def begun() -> list[tuple[int, int, str]]:
    """What was told of each kind."""
    return []


@pytest.fixture(scope="module")
def found(
    config: CacheTeacherConfig,
    begun: list[tuple[int, int, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Comparison:
    def tell(number: int, num_kinds: int, one: Compared) -> None:
        begun.append((number, num_kinds, one.settings["targets"]))

    scratch = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compared, "COMPARED", _SETTINGS)
        patch.setattr(probe, "_FIT_POSITIONS", 1024)
        patch.setattr(probe, "_MEASURED_POSITIONS", 512)
        patch.setattr(probe, "_MOST_POSITIONS", 128)
        patch.setattr(tempfile, "tempdir", str(scratch))
        comparison = compare_targets(config, lambda _: None, tell)
    assert list(scratch.iterdir()) == []
    return comparison


def test_every_kind_is_told_of_and_the_recipes_own_comes_first(
    found: Comparison, begun: list[tuple[int, int, str]]
) -> None:
    assert [row.settings for row in found.rows[1:]] == list(_SETTINGS)
    own = found.rows[0]
    assert own.is_recipe
    assert (own.settings["targets"], own.settings["top_k"]) == ("top_k", 12)
    assert not any(row.is_recipe for row in found.rows[1:])
    assert begun == [(n, 10, row.settings["targets"]) for n, row in enumerate(found.rows)]


def test_what_is_lost_falls_with_what_is_kept(found: Comparison) -> None:
    _, few, many, everything, _, _, coarse, fine, both, _ = found.rows
    for at in range(3):
        kl = [row.self_kl[at] for row in (few, many, everything, coarse, fine, both)]
        assert all(one is not None and one >= 0 for one in kl)
        assert kl[0] > kl[1] > kl[2]  # type: ignore[operator]
        assert kl[3] > kl[4]  # type: ignore[operator]
        assert kl[5] < min(kl[0], kl[3])  # type: ignore[operator, type-var]
    assert few.bytes_per_token < many.bytes_per_token < everything.bytes_per_token
    assert coarse.bytes_per_token < fine.bytes_per_token


def test_kept_ids_have_a_bias_and_draws_a_noise(found: Comparison) -> None:
    _, few, _, everything, sampled, drawn, *_ = found.rows
    for at in range(3):
        errors = [row.gradient[at] for row in (few, everything, drawn)]
        assert all(one is not None for one in errors)
        of_few, of_everything, of_drawn = (one for one in errors if one is not None)
        assert of_few.noise == of_everything.noise == 0
        assert of_everything.bias < 0.1 < of_few.bias
        assert of_drawn.bias < 0.5 * of_few.bias
        assert of_drawn.noise > 0.01
    assert sampled.gradient[0] is not None
    assert sampled.gradient[1:] == [None, None]  # draws serve their own temperature
    assert sampled.self_kl[1:] == [None, None]


def test_moments_lower_the_bias_for_some_bytes(found: Comparison) -> None:
    """And nothing else: they are no distribution, so what is lost is what it was."""
    few, moments = found.rows[1], found.rows[-1]
    assert few.bytes_per_token < moments.bytes_per_token < 3 * few.bytes_per_token
    for without, with_them in zip(few.gradient, moments.gradient, strict=True):
        assert without is not None
        assert with_them is not None
        assert with_them.bias < 0.9 * without.bias
    assert moments.self_kl == few.self_kl


def test_bytes_are_those_of_an_estimate(found: Comparison, config: CacheTeacherConfig) -> None:
    cached = estimate(config, seconds=3600, report=lambda _: None)
    columns = cached.column_bytes_per_token
    own = found.rows[0]
    targets = sum(columns[name] for name in ("num_kept", "kept", "tail_log_mass", "next_logprob"))
    assert own.bytes_per_token == pytest.approx(targets, rel=0.05)
    others = sum(columns.values()) - targets - columns["framing"]
    assert own.num_bytes == pytest.approx(10_000 * (targets + others), rel=0.05)


def test_time_is_relative_to_the_papers_setting(found: Comparison) -> None:
    assert found.rows[2].relative_seconds == 1.0
    assert all(row.relative_seconds and row.relative_seconds > 0 for row in found.rows)


def test_the_student_is_the_teacher_with_less_context(found: Comparison) -> None:
    assert found.student_context == 4
    assert 0 < found.student_kl[2] < found.student_kl[0]
    assert found.num_positions == 128


def test_the_text_has_a_row_for_every_setting_and_marks_the_recipes(found: Comparison) -> None:
    text = comparison_text(found)
    assert text.count("<- recipe") == 2
    assert text.count("top_k+sampled top_k=8 num_samples=50 ") == 2
    assert "T = 1.5" in text
    assert "context of at most 4 tokens" in text


def test_json_has_a_name_for_every_figure(found: Comparison) -> None:
    figures = comparison_figures(found)
    assert figures["tokens"] == 10_000
    sampled = figures["kinds"][4]
    assert (sampled["kind"], sampled["settings"]) == ("sampled", {"num_samples": 50})
    assert sampled["self_kl_t1"] > 0
    assert sampled["noise_t1"] > 0
    assert sampled["self_kl_t1_5"] is sampled["bias_t2"] is None
    assert [row["is_recipe"] for row in figures["kinds"]] == [True] + [False] * 9


def test_a_sketch_of_principal_components_is_fitted_for_its_size(
    config: CacheTeacherConfig,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compared, "COMPARED", ())
        pca = replace(config, hidden_projection="pca")
        (own,) = compare_targets(pca, lambda _: None, lambda *_: None).rows
        none = replace(config, hidden_projection="none")
        (bare,) = compare_targets(none, lambda _: None, lambda *_: None).rows
    assert own.bytes_per_token == bare.bytes_per_token
    assert own.num_bytes > bare.num_bytes
    assert own.relative_seconds is None  # there is nothing to compare it with


def test_a_corpus_that_is_too_short_is_refused(config: CacheTeacherConfig, tmp_path: Path) -> None:
    corpus = tiny.write_fineweb_parquet(
        tmp_path / "corpus.parquet", tiny.tiny_texts(4, max_words=12)
    )
    with pytest.raises(ValueError, match="too short to compare targets"):
        compare_targets(replace(config, corpus=str(corpus)), lambda _: None, lambda *_: None)
