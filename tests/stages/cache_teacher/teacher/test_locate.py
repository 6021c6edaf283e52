"""What a teacher's name stands for: a directory, the Hub, or a mistake."""

from pathlib import Path

import pytest

from stages.cache_teacher.teacher.locate import local_directory


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-1.5B", "gpt2", "me/model-GGUF", "me/llama-3.2"])
def test_a_hub_id_is_no_local_directory(name: str) -> None:
    assert local_directory(name) is None


def test_a_directory_is_resolved_to_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.gguf").mkdir()
    for name in (".", str(tmp_path)):
        assert local_directory(name) == tmp_path.resolve()
    assert local_directory("mine.gguf") == (tmp_path / "mine.gguf").resolve()


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(ValueError, match="teacher: not set: expected a directory"):
        local_directory("")


@pytest.mark.parametrize(
    "name", ["./gone", "models/mine/gone", "/gone", "~/gone", "gone.gguf", "a/gone.safetensors"]
)
def test_a_missing_path_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"no such directory; expected a directory with config"):
        local_directory(name)


@pytest.mark.parametrize(
    ("name", "next_step"),
    [
        ("x.gguf", "use the model that it was converted from"),
        ("x.bin", "Pickled weights are never loaded"),
        ("x.pt", "save_pretrained"),
        ("x.onnx", "save_pretrained"),
        ("model/model.safetensors", "Did you mean its directory, 'model'?"),
    ],
)
def test_a_file_is_refused_with_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, next_step: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").touch()
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match="a file; expected a directory") as caught:
        local_directory(name)
    assert next_step in str(caught.value)
