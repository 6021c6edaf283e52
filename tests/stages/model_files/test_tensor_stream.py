"""Files written tensor by tensor: what safetensors reads of them, and would have written."""

import io
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save

from stages.model_files.tensor_stream import write_tensors

_TENSORS = {
    "large": torch.arange(6.0).reshape(2, 3),
    "scalar": torch.tensor(2.5),
    "half": torch.tensor([1.0, -2.0, 3.0]).bfloat16(),
    "none": torch.zeros(0, 4).half(),
}
_LAYOUT = {
    "large": ("F32", (2, 3)),
    "scalar": ("F32", ()),
    "half": ("BF16", (3,)),
    "none": ("F16", (0, 4)),
}


def test_what_is_written_is_read_by_safetensors(tmp_path: Path) -> None:
    with (tmp_path / "x.safetensors").open("wb") as sink:
        write_tensors(sink, _LAYOUT, iter(_TENSORS.items()))
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == _TENSORS.keys()
    for name, tensor in _TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_the_bytes_are_those_of_the_package() -> None:
    names = ["a", "b"]
    tensors = {name: torch.randn(3, 5) for name in names}
    sink = io.BytesIO()
    write_tensors(sink, dict.fromkeys(names, ("F32", (3, 5))), tensors.items())
    assert sink.getvalue() == save(tensors, metadata={"format": "pt"})


def test_a_tensor_that_is_not_contiguous_is_written_by_its_shape() -> None:
    sink = io.BytesIO()
    tensor = torch.arange(6.0).reshape(2, 3).T
    write_tensors(sink, {"x": ("F32", (3, 2))}, [("x", tensor)])
    assert torch.equal(load(sink.getvalue())["x"], tensor)


@pytest.mark.parametrize(
    "tensors",
    [
        [("large", torch.zeros(2, 3))],
        [("other", torch.zeros(2, 3)), ("scalar", torch.tensor(1.0))],
        [("large", torch.zeros(3, 2)), ("scalar", torch.tensor(1.0))],
        [("large", torch.zeros(2, 3).half()), ("scalar", torch.tensor(1.0))],
    ],
)
def test_other_tensors_than_planned_are_a_bug(tensors: list[tuple[str, torch.Tensor]]) -> None:
    layout = {name: _LAYOUT[name] for name in ("large", "scalar")}
    with pytest.raises(AssertionError):
        write_tensors(io.BytesIO(), layout, tensors)
