"""What is refused early; what is not refused early must be what the stage accepts."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from cache_format.errors import ForeignDirectoryError, SpecMismatchError
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.preflight import check_early
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
        ({"teacher_dtype": "bfloat16"}, "teacher.dtype"),
        ({"attention": "eager"}, "teacher.attention"),
        ({"text_column": "words"}, "corpus.text_column"),
        ({"documents_per_unit": 11}, "corpus.documents_per_unit"),
        ({"on_bad_document": "skip"}, "corpus.on_bad_document"),
        ({"top_k": 13}, "targets.kept.top_k"),
        ({"hidden_projection": "pca"}, "sketch.kind"),
        ({"hidden_projection": "none"}, "sketch.kind"),
        ({"validation_every": 5}, "validation_every"),
        ({"seed": 1}, "seed"),
    ],
)
def test_another_cache_is_refused_by_field(
    config: CacheTeacherConfig, tiny_cache: Path, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(SpecMismatchError, match=field):
        check_early(dataclasses.replace(config, **changes), tiny_cache)


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
