"""What is refused early; what is not refused early must be what the stage accepts."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from cache_format.errors import ForeignDirectoryError, SpecMismatchError
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.preflight import check_early
from stages.cache_teacher.setup.setting_names import _SETTINGS, setting_of
from tests.support import tiny


@pytest.fixture
def config(tiny_cache: Path) -> CacheTeacherConfig:
    """That of ``tiny_cache``."""
    return tiny.tiny_cache_config(
        tiny_cache.parent / "teacher", tiny_cache.parent / "corpus.parquet"
    )


def test_the_preflight_check_does_not_access_the_hub(tmp_path: Path) -> None:
    check_early(CacheTeacherConfig(), tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes", [{}, {"num_tokens": 7}, {"device": "cuda"}, {"compile": "auto"}]
)
def test_a_cache_of_the_same_recipe_passes(
    config: CacheTeacherConfig, tiny_cache: Path, changes: dict[str, Any]
) -> None:
    check_early(dataclasses.replace(config, **changes), tiny_cache)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"teacher_dtype": "bfloat16"}, "teacher_dtype"),
        ({"attention": "eager"}, "attention"),
        ({"text_column": "words"}, "text_column"),
        ({"documents_per_unit": 11}, "documents_per_unit"),
        ({"on_bad_document": "skip"}, "on_bad_document"),
        ({"messages_column": "messages", "train_on": "all"}, "messages_column"),
        ({"messages_column": "messages", "train_on": "all"}, "train_on"),
        ({"targets": "hidden"}, "targets"),
        ({"targets": "hidden", "hidden_kl": 0.07}, "hidden_kl"),
        ({"targets": "hidden"}, "hidden_quantization"),
        ({"targets": "top_k+sampled"}, "num_samples"),
        ({"tail_moment_dim": 8}, "tail_moment_dim"),
        ({"top_k": 13}, "top_k"),
        ({"top_p": 0.5}, "top_p"),
        ({"inverse_temperatures": (0.5, 1.0)}, "inverse_temperatures"),
        ({"hidden_projection": "pca"}, "hidden_projection"),
        ({"hidden_projection": "none"}, "hidden_projection"),
        ({"hidden_states": "last"}, "hidden_states"),
        ({"hidden_projection_dim": 24}, "hidden_projection_dim"),
        ({"hidden_projection_dtype": "float32"}, "hidden_projection_dtype"),
        ({"validation_every": 5}, "validation_every"),
        ({"validation_split": "rows"}, "validation_split"),
        ({"sequence_length": 24}, "sequence_length"),
        ({"seed": 1}, "seed"),
    ],
)
def test_another_cache_is_refused_by_the_name_of_the_setting(
    config: CacheTeacherConfig, tiny_cache: Path, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(SpecMismatchError, match=f"\n  cache_teacher.{field}: expected "):
        check_early(dataclasses.replace(config, **changes), tiny_cache)


def test_every_name_of_a_field_is_that_of_a_setting() -> None:
    settings = {f"cache_teacher.{field.name}" for field in dataclasses.fields(CacheTeacherConfig)}
    assert {setting_of(field) for field in _SETTINGS} <= settings
    assert setting_of("corpus.source") == "cache_teacher.corpus"
    assert setting_of("corpora[1].corpus.chat.train_on") == "cache_teacher.corpora[1].train_on"
    assert setting_of("corpora[0].weight") == "cache_teacher.corpora[0].weight"
    assert setting_of("teacher.weights_sha256") == "teacher.weights_sha256"


def test_principal_components_of_an_existing_cache_pass(tmp_path: Path) -> None:
    cache = tiny.tiny_cache(tmp_path, 20, hidden_projection="pca", num_tokens=100)
    config = tiny.tiny_cache_config(
        tmp_path / "teacher", tmp_path / "corpus.parquet", hidden_projection="pca"
    )
    check_early(config, cache)


def test_a_directory_with_other_files_is_refused(
    config: CacheTeacherConfig, tiny_cache: Path
) -> None:
    with pytest.raises(ForeignDirectoryError):
        check_early(config, tiny_cache.parent / "teacher")
