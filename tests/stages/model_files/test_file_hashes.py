"""The hashes that name a teacher: every file that matters counts, and no other."""

from pathlib import Path

import pytest

from stages.model_files.file_hashes import files_sha256, tokenizer_sha256, weights_sha256


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "generation_config.json"):
        (tmp_path / name).write_text(f"{name}\n")
    return tmp_path


def test_the_hash_of_files_is_of_their_checksums_in_order(directory: Path) -> None:
    """As ``sha256sum config.json model.safetensors | sha256sum`` prints it."""
    found = files_sha256(directory, ["model.safetensors", "config.json"])
    assert found == "f4ea5abd0574534ea853123ed85de14c43f124125e0d1f9242dd66797b7c18ce"
    assert found == weights_sha256(directory)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_weights_are_their_bytes_and_their_configuration(directory: Path, name: str) -> None:
    before = weights_sha256(directory), tokenizer_sha256(directory)
    (directory / name).write_text("other\n")
    assert weights_sha256(directory) != before[0]
    assert tokenizer_sha256(directory) == before[1]


def test_a_tokenizer_is_the_files_that_its_ids_depend_on(directory: Path) -> None:
    before = tokenizer_sha256(directory)
    (directory / "generation_config.json").unlink()
    assert tokenizer_sha256(directory) == before
    (directory / "vocab.json").write_text("{}")
    assert tokenizer_sha256(directory) != before
