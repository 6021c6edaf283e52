"""Students of one origin that differ in what was trained."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_WEIGHTS = "model.safetensors"
_FROZEN = ("token_embedding.weight", "lm_head.weight")


def tensors_of(run: Path) -> dict[str, Tensor]:
    """The weights of the student in ``run``."""
    return load_file(run / "model" / _WEIGHTS)


def change_weights(run: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """Apply ``change`` to the weights of a student without checksums."""
    tensors = tensors_of(run)
    change(tensors)
    save_file(tensors, run / "model" / _WEIGHTS, metadata={"format": "pt"})
    return run


def make_expert(origin: Path, run: Path, seed: int) -> Path:
    """A copy of ``origin`` at ``run`` with noise on what is trained."""
    shutil.copytree(origin, run)
    generator = torch.Generator().manual_seed(seed)

    def add_noise(tensors: dict[str, Tensor]) -> None:
        for name in sorted(tensors.keys() - set(_FROZEN)):
            noise = torch.randn(tensors[name].shape, generator=generator)
            tensors[name] += (0.1 * noise).to(tensors[name].dtype)

    return change_weights(run, add_noise)
