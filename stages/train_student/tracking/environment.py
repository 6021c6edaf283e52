"""What a run was computed with: versions of the packages, the commit, the machine."""

import json
import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import torch

_PACKAGES = ("xlstm-distill", "torch", "transformers", "xlstm")
_CPU_INFO = Path("/proc/cpuinfo")
_ROOT = Path(__file__).parents[3]


def run_environment(device: torch.device, num_processes: int) -> dict[str, str]:
    """By name, as people read it; what cannot be found is left out."""
    found = {name: text for name in _PACKAGES if (text := _version(name))}
    if commit := _commit(_ROOT):
        found["commit"] = commit
    found |= {"python": platform.python_version(), "system": platform.platform()}
    is_gpu = device.type == "cuda"
    found["device"] = torch.cuda.get_device_name(device) if is_gpu else _processor()
    if is_gpu and torch.version.cuda:
        found["cuda"] = torch.version.cuda
    found |= {"threads": str(torch.get_num_threads()), "processes": str(num_processes)}
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit(root: Path) -> str:
    """Of the installed version, or of the checkout ``root`` that is run; "" without either."""
    with suppress(PackageNotFoundError, ValueError, AttributeError, OSError):
        text = distribution("xlstm-distill").read_text("direct_url.json")
        if text and (installed := json.loads(text).get("vcs_info", {}).get("commit_id")):
            return str(installed)
    git = root / ".git"
    with suppress(OSError, UnicodeDecodeError):
        if git.is_file():  # a worktree names its own directory
            git = root / git.read_text("utf-8").removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text("utf-8").strip()
        if not head.startswith("ref: "):
            return head
        common = git / "commondir"
        shared = git / common.read_text("utf-8").strip() if common.is_file() else git
        for folder in (git, shared):
            if (reference := folder / head.removeprefix("ref: ")).is_file():
                return reference.read_text("utf-8").strip()
    return ""


def _processor() -> str:
    with suppress(OSError):
        for line in _CPU_INFO.read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {os.cpu_count()} processors"
    return f"{platform.machine()}, {os.cpu_count()} processors"
