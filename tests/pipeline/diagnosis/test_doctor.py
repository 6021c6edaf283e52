"""``pipeline doctor``: what it finds, and what it advises."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.diagnosis import kernels, machine, recipes_here
from pipeline.recipes.recipe import listed_recipes
from tests.support.command_line import run

CPU = torch.device("cpu")


def doctor(*arguments: str) -> Any:
    result = run("doctor", *arguments)
    assert result.exit_code == 0, result.output
    return result


def test_it_names_versions_hardware_extras_and_what_would_run() -> None:
    found = json.loads(doctor("--device", "cpu", "--json").stdout)
    assert list(found) == [
        *("versions", "machine", "gpus", "extras", "what_auto_stands_for", "recipes", "problems"),
    ]
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"].keys() > {"xlstm-distill", "python", "system", "pyarrow"}
    assert "GiB" in found["machine"]["memory"]
    assert found["what_auto_stands_for"]["device"] == "cpu"
    assert "PyTorch loop on cpu" in found["what_auto_stands_for"]["slstm_backend"]
    assert found["recipes"].keys() == listed_recipes().keys()


def test_the_text_has_every_fact_and_ends_with_the_problems() -> None:
    found = json.loads(doctor("--device", "cpu", "--json").stdout)
    text = doctor("--device", "cpu").stdout
    sections = [facts for name, facts in found.items() if name != "problems"]
    # Memory and disk change between two calls.
    facts = [fact for section in sections for fact in section.values() if "GiB" not in fact]
    assert [fact for fact in facts if fact not in text] == []
    assert text.partition("\nProblems\n")[2].startswith("  - ")


def test_a_device_that_is_not_there_is_refused() -> None:
    result = run("doctor", "--device", "cuda:99")
    assert result.exit_code != 0
    assert "PyTorch sees" in result.output


def test_a_compiler_that_is_missing_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    problem = kernels.compile_problem(CPU)
    assert problem == "no C++ compiler"
    assert kernels.kernels_section(CPU, problem).facts["compile"] == "off: no C++ compiler"
    (sentence,) = kernels.kernel_problems(CPU, problem)
    assert "Install g++" in sentence


def test_a_compiler_that_fails_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there, but ends with an error."""

    def fails(*_: torch.Tensor) -> None:
        raise torch._dynamo.exc.TorchDynamoException("InvalidCxxCompiler: g++ is broken")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    assert "g++ is broken" in kernels.compile_problem(CPU)


def test_a_full_disk_and_a_gpu_that_pytorch_cannot_use_are_problems(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not any("GPU" in problem for problem in _problems(monkeypatch, tmp_path / "none", 100))
    (tmp_path / "nvidia0").touch()
    gpu, disk = _problems(monkeypatch, tmp_path / "nvidia0", 1)
    assert "Install a build of PyTorch" in gpu
    assert disk.startswith("Only 1.0 GiB are free")


def test_a_directory_that_is_gone_is_a_problem_and_the_rest_is_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def gone() -> Path:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(Path, "cwd", gone)
    (problem,) = machine.machine_problems(CPU)
    assert problem.startswith("The working directory cannot be read (No such file")
    (hardware,) = (s for s in machine.machine_sections(CPU) if s.title == "Machine")
    assert hardware.facts["free disk here"].startswith("unknown")


def _problems(monkeypatch: pytest.MonkeyPatch, gpu: Path, free_gibibytes: int) -> list[str]:
    usage = SimpleNamespace(free=free_gibibytes << 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(machine, "_NVIDIA", gpu)
    return list(machine.machine_problems(CPU))


def test_an_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_EXTRAS", {"some": ("no_such_module_here", "a thing")})
    (extras,) = (s for s in machine.machine_sections(CPU) if s.title == "Extras")
    assert extras.facts == {"some": "not installed; for a thing: pip install 'xlstm-distill[some]'"}


def test_a_recipe_s_teacher_is_looked_for_but_not_downloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The tests have no network: a download would fail."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    facts = recipes_here.recipes_section().facts
    assert facts["distil-xlstm"] == "distil_xlstm; teacher: Qwen/Qwen2.5-1.5B, not yet downloaded"
    assert facts["hybrid-align"].startswith("hybrid_xlstm; ")
