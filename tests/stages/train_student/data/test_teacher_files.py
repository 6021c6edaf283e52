"""The teacher's embedding and head in a cache: what is refused before a student is made of them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import cache_format
from cache_format.reader import Cache
from cache_format.writer import CacheWriter
from stages.train_student.data.teacher_files import teacher_embedding, teacher_head
from tests.support.sample_cache import ROWS_OF_UNIT, fill, sample_shared, sample_spec


def cache_of(root: Path, **tensors: torch.Tensor) -> Cache:
    """A cache with these tensors in the teacher's file."""
    spec = sample_spec()
    writer = CacheWriter.create_or_open(root, spec, sample_shared(spec))
    writer.write_attachments(
        lambda directory: save_file(tensors, directory / "embedding.safetensors")
    )
    fill(writer, sorted(ROWS_OF_UNIT))
    writer.publish_manifest(num_tokens_requested=120, complete=True)
    return cache_format.open(root)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_head_is_the_embedding_unless_there_is_one(tmp_path: Path, dtype: torch.dtype) -> None:
    embedding, head = torch.randn(48, 16).to(dtype), torch.randn(48, 16).to(dtype)
    tied = cache_of(tmp_path / "tied", embedding=embedding)
    assert torch.equal(teacher_head(tied), embedding[:40])
    untied = cache_of(tmp_path / "untied", embedding=embedding, head=head)
    assert torch.equal(teacher_head(untied), head[:40])


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64]
)
def test_a_type_of_number_that_no_student_can_have_is_named(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    cache = cache_of(tmp_path, embedding=torch.ones(48, 16), head=torch.ones(48, 16).to(dtype))
    with pytest.raises(ValueError, match=r"embedding\.safetensors: head is .*, expected float32"):
        teacher_embedding(cache)


@pytest.mark.parametrize("row", [0, 47])
def test_nan_is_named_even_in_a_padding_row(tmp_path: Path, row: int) -> None:
    embedding = torch.ones(48, 16)
    embedding[row, 3] = torch.nan
    with pytest.raises(ValueError, match="embedding holds NaN or infinity"):
        teacher_embedding(cache_of(tmp_path, embedding=embedding))


def test_a_head_of_another_shape_is_named(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, embedding=torch.ones(48, 16), head=torch.ones(48, 8))
    with pytest.raises(ValueError, match=r"a head of shape \(48, 8\), expected \(48, 16\)"):
        teacher_head(cache)


def test_a_file_without_an_embedding_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no teacher's embedding"):
        teacher_embedding(cache_of(tmp_path, head=torch.ones(48, 16)))
