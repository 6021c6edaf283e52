"""What is installed: pins that fit the ranges, and files that ship with the packages."""

import re
import tomllib
from importlib import resources
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import ROOT


def project() -> dict[str, Any]:
    document: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return document


def pins() -> dict[str, str]:
    """Version by name; anything but ``name==version`` and comments is refused."""
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups()  # type: ignore[union-attr]
            found[canonicalize_name(name)] = version
    return found


def test_every_dependency_is_pinned_within_its_range() -> None:
    extras = project()["optional-dependencies"]
    requirements = [*project()["dependencies"], *extras["dev"], *extras["docs"]]
    pinned: dict[str, str] = {str(name): version for name, version in pins().items()}
    assert "triton" not in pinned  # PyTorch's builds for GPUs each name the one that they need
    for requirement in map(Requirement, requirements):
        if requirement.name == "triton":
            continue
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} is pinned to {version}"
        assert len(requirement.specifier) > 0, f"{requirement} has no lower bound"


def test_every_import_is_declared() -> None:
    """No module relies on what another package happens to bring along."""
    import sys

    from tests.support.import_graph import imports

    extras = project()["optional-dependencies"]
    requirements = [*project()["dependencies"], *extras["ray"], *extras["eval"], *extras["lora"]]
    declared = {Requirement(text).name.replace("-", "_") for text in requirements}
    declared.add("triton")  # comes with PyTorch where it is used, and is done without elsewhere
    ours = {"pipeline", "stages", "cache_format"}
    for found in imports():
        top = found.imported.partition(".")[0]
        assert top in declared | ours | sys.stdlib_module_names, found


def test_recipes_and_the_format_readme_ship_with_the_package() -> None:
    package = resources.files("pipeline")
    assert (package / "recipes" / "distil-xlstm.toml").is_file()
    assert (package / "recipes" / "demo.toml").is_file()
    assert (package / "judgement" / "suites" / "paper-base.toml").is_file()
    assert (resources.files("cache_format") / "README.md").is_file()


def test_extras_are_imported_only_where_they_are_needed() -> None:
    from tests.support.import_graph import imports

    users: dict[str, set[str]] = {"ray": set(), "lm_eval": set(), "triton": set()}
    for found in imports():
        users.get(found.imported.partition(".")[0], set()).add(found.importer)
    kernels = "stages.train_student.modeling.layers.slstm_triton"
    assert users == {
        "ray": {"stages.ray_cluster"},
        "lm_eval": {"pipeline.students.lm_eval_harness"},
        "triton": {kernels, f"{kernels}_kernels"},
    }
