"""What figures were measured on: hardware, driver, versions, commit.

In: a device. Out: one JSON object. Fails where the device is not there.
"""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import click

_PACKAGES = (
    *("torch", "triton", "transformers", "xlstm", "pyarrow", "numpy", "zstandard"),
    *("liger-kernel", "cut-cross-entropy"),
)
_ROOT = Path(__file__).parents[2]


@click.command("environment", help=__doc__)
@click.option("--device", default="cuda", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def environment(device: str, as_json: bool) -> None:
    try:
        figures = describe(device)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    lines = [f"{name:20}{value}" for name, value in figures.items()]
    click.echo(json.dumps(figures) if as_json else "\n".join(lines))


def describe(name: str) -> dict[str, Any]:
    """Raises ValueError where there is no such device."""
    from stages.compute.device import choose_device

    device = choose_device(name)
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "system": platform.platform(),
        "cpu_cores": os.cpu_count(),
        **(_gpu(device) if device.type == "cuda" else {"device": "cpu"}),
    }


def commit() -> str:
    """That of the working tree, with ``+changes`` if files differ; empty outside of git."""
    try:
        head = _output("git", "-C", str(_ROOT), "rev-parse", "HEAD")
        is_changed = _output("git", "-C", str(_ROOT), "status", "--porcelain", "-uno")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+changes" if is_changed else "")


def _gpu(device: Any) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "device_bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),  # type: ignore[no-untyped-call]
    }


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return ""
    query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    try:
        return _output(*query).splitlines()[0]
    except (IndexError, subprocess.CalledProcessError):
        return ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _output(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()
