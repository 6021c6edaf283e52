"""The machine: versions, processor, memory, disk, GPUs, and the packages of the extras.

In: PyTorch's device. Out: sections of a diagnosis, and problems.
"""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from pipeline.diagnosis.diagnosis import Section
from stages.train_student.tracking.environment import run_environment

_PACKAGES = ("tokenizers", "datasets", "pyarrow", "numpy", "zstandard", "triton", "click")
"""Beside those that every run records."""

_EXTRAS = {
    "lora": ("peft", "train_student.student.trained=lora"),
    "eval": ("lm_eval", "evaluate --tasks"),
    "ray": ("ray", "cache-teacher and ablate on a Ray cluster"),
    "s3": ("s3fs", "caches and corpora at s3://"),
    "gcs": ("gcsfs", "caches and corpora at gs://"),
    "wandb": ("wandb", "report_to wandb"),
    "trackio": ("trackio", "report_to trackio"),
}
"""Extras of pyproject.toml: the module that one brings, and what needs it."""

_FEW_BYTES = 10 << 30  # of a disk: a cache of the recipes is larger
_NVIDIA = Path("/dev/nvidia0")


def machine_sections(device: torch.device) -> list[Section]:
    """Versions, hardware, GPUs and extras."""
    versions = run_environment(device, 1)
    hardware = {
        "processor": versions.pop("device") if device.type == "cpu" else _cores(),
        "cores of this process": str(len(os.sched_getaffinity(0))) if _has_affinity() else _cores(),
        "threads of PyTorch": versions.pop("threads"),
        "memory": _memory(),
        "free disk here": _free_disk(),
    }
    for name in ("device", "processes"):
        versions.pop(name, None)
    versions |= {name: text for name in _PACKAGES if (text := _version(name))}
    return [
        Section("Versions", versions),
        Section("Machine", hardware),
        Section("GPUs", _gpus() or {"none": _why_no_gpu()}),
        Section("Extras", {name: _extra(name) for name in _EXTRAS}),
    ]


def machine_problems(device: torch.device) -> Iterator[str]:
    """What would end a run, or make it slow for no reason."""
    if device.type == "cpu" and _NVIDIA.exists():
        yield (
            f"This machine has an NVIDIA GPU ({_NVIDIA}), but PyTorch cannot use it: "
            f"{_why_no_gpu()}. Install a build of PyTorch for its CUDA driver."
        )
    try:
        here = Path.cwd()
        free = shutil.disk_usage(here).free
    except OSError as error:
        yield f"The working directory cannot be read ({error.strerror}). Go to another."
        return
    if not os.access(here, os.W_OK):
        yield f"{here} cannot be written. Write caches and runs elsewhere, with --out."
    if free < _FEW_BYTES:
        yield (
            f"Only {_gigabytes(free)} are free on the disk of {here}. Write caches elsewhere "
            "with --out; `pipeline estimate` says how much one takes."
        )


def _free_disk() -> str:
    try:
        return _gigabytes(shutil.disk_usage(Path.cwd()).free)
    except OSError as error:
        return f"unknown: {error.strerror}"


def _has_affinity() -> bool:
    return hasattr(os, "sched_getaffinity")  # not on macOS


def _cores() -> str:
    return f"{os.cpu_count()} cores"


def _memory() -> str:
    total = _gigabytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        return f"{total}, {_gigabytes(int(available.split()[1]) * 1024)} available"
    return total


def _gpus() -> dict[str, str]:
    found = {}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        found[f"cuda:{index}"] = (
            f"{properties.name}, {_gigabytes(total)}, {_gigabytes(free)} free, compute capability "
            f"{properties.major}.{properties.minor}"
        )
    return found


def _why_no_gpu() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return f"PyTorch {torch.__version__} is a build for CPUs"
    return f"PyTorch {torch.__version__} (CUDA {torch.version.cuda}) sees none"


def _extra(name: str) -> str:
    module, use = _EXTRAS[name]
    if importlib.util.find_spec(module) is None:
        return f"not installed; for {use}: pip install 'xlstm-distill[{name}]'"
    return f"{module} {_version(module) or 'of an unknown version'}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
