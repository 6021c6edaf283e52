"""A dry run says what a run then does, and writes nothing."""

import dataclasses
from pathlib import Path

import pytest

from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.plan import plan_cache
from stages.cache_teacher.run import cache_teacher
from tests.support import tiny


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CacheTeacherConfig:
    root = tmp_path_factory.mktemp("plan")
    teacher = tiny.save_tiny_teacher(root / "teacher", tie=False)
    corpus = tiny.write_fineweb_parquet(root / "corpus.parquet", tiny.tiny_texts(35))
    return tiny.tiny_cache_config(teacher, corpus, num_tokens=500)


def test_a_plan_describes_a_new_cache(config: CacheTeacherConfig, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    plan = plan_cache(config, out)
    assert not out.exists()
    assert plan.num_units == 4  # of 10 documents, of 35
    assert (plan.num_tokens_held, plan.num_tokens_left) == (0, 500)
    assert plan.bytes_per_token is None
    assert plan.is_identity_known
    manifest = cache_teacher(config, out, recipe_toml="", report=lambda _: None)
    assert manifest.cache_id == plan.spec.cache_id


def test_a_plan_of_an_unfinished_cache_counts_finished_units(
    config: CacheTeacherConfig, tmp_path: Path
) -> None:
    out = tmp_path / "cache"
    manifest = cache_teacher(config, out, recipe_toml="", report=lambda _: None)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    longer = dataclasses.replace(config, num_tokens=5000)
    plan = plan_cache(longer, out)
    held = sum(shard.num_tokens for shard in manifest.shards)
    assert plan.held == manifest.shards
    assert plan.num_tokens_left == 5000 - held
    assert plan.bytes_per_token == sum(s.num_bytes for s in manifest.shards) / held
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_plan_with_principal_components_has_no_cache_id_yet(
    config: CacheTeacherConfig, tmp_path: Path
) -> None:
    pca = dataclasses.replace(config, hidden_projection="pca")
    assert not plan_cache(pca, tmp_path / "cache").is_identity_known


def test_a_plan_counts_every_teacher_parameter(config: CacheTeacherConfig, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(config.teacher)
    expected = sum(parameter.numel() for parameter in model.parameters())
    assert plan_cache(config, tmp_path / "cache").num_parameters == expected


@pytest.mark.parametrize("num_documents", [1, 10, 11, 20, 21, 80])
def test_a_plan_counts_the_units_of_the_corpus(
    config: CacheTeacherConfig, tmp_path: Path, num_documents: int
) -> None:
    corpus = tiny.write_fineweb_parquet(tmp_path / "c.parquet", tiny.tiny_texts(num_documents))
    changed = dataclasses.replace(config, corpus=str(corpus))
    assert plan_cache(changed, tmp_path / "cache").num_units == -(-num_documents // 10)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"top_k": 1000}, "top_k: 1000 is more than"),
        ({"sequence_length": 4096}, "sequence_length: 4096 is more than"),
        ({"device": "cuda:7"}, "device: 'cuda:7' is not there"),
        ({"text_column": "words"}, "no column 'words'"),
    ],
)
def test_a_plan_refuses_the_settings_that_a_run_refuses(
    config: CacheTeacherConfig, tmp_path: Path, changes: dict[str, object], expected: str
) -> None:
    changed = dataclasses.replace(config, **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=expected):
        plan_cache(changed, tmp_path / "cache")
    with pytest.raises(ValueError, match=expected):
        cache_teacher(changed, tmp_path / "cache", recipe_toml="", report=lambda _: None)
    assert not (tmp_path / "cache").exists()
