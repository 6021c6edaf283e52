"""The files of a model's weights: those beside the index, or an error that names it."""

import json
from pathlib import Path

import pytest

from stages.model_files.weight_files import INDEX, pickled_note, weight_files

PART = "model-00001-of-00002.safetensors"


def test_a_single_weight_file_takes_precedence_over_an_index(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text("{")
    (tmp_path / "model.safetensors").touch()
    assert weight_files(tmp_path) == ["model.safetensors"]


def test_sharded_weight_files_are_listed_once_each(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"b": PART, "a": PART}}))
    with pytest.raises(ValueError, match=f"lacks {PART}, named by {INDEX}"):
        weight_files(tmp_path)
    (tmp_path / PART).touch()
    assert weight_files(tmp_path) == [PART]


@pytest.mark.parametrize(
    "weight_map",
    [
        {"a": "../model.safetensors"},
        {"a": "/etc/model.safetensors"},
        {"a": "sub/model.safetensors"},
        {"a": ".hidden.safetensors"},
        {"a": "pytorch_model.bin"},
        {"a": PART, "b": 1},
        {"a": f"{PART}\n"},
        {},
        [PART],
        None,
    ],
)
def test_a_weight_index_with_invalid_paths_is_refused(tmp_path: Path, weight_map: object) -> None:
    (tmp_path / PART).touch()
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=r"index\.json: .*weight_map: expected .* Put it back"):
        weight_files(tmp_path)


def test_missing_or_pickled_weights_give_no_weight_files(tmp_path: Path) -> None:
    assert (weight_files(tmp_path), pickled_note(tmp_path)) == ([], "")
    (tmp_path / "pytorch_model.bin").touch()
    assert weight_files(tmp_path) == []
    assert "its pytorch_model.bin is a pickle, which is never loaded" in pickled_note(tmp_path)
