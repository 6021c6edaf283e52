"""Wheels for a machine without a package index: ``python -m benchmarks.gpu.wheelhouse --help``.

In: ``pyproject.toml``, ``constraints.txt`` and the metadata of what is installed here, which says
what depends on what. Out: a directory of wheels at the pinned versions, ``requirements.txt`` in it,
and a line that installs them. PyTorch, Triton and NVIDIA's packages are left out: gigabytes, which
that machine has, in the build for its GPU.
"""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import click
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_ROOT = Path(__file__).parents[2]
_ON_THE_MACHINE = re.compile(r"torch|triton|nvidia-.*|cuda-.*")
# What `make gpu` tests with. Of the extra `dev`, hundreds of megabytes, it needs nothing else.
_FOR_TESTS = (
    *("hypothesis", "packaging", "pytest", "pytest-socket", "pytest-timeout", "pytest-xdist"),
    "setuptools",
)

Metadata = Callable[[str], Iterable[str]]
"""The requirements of a package, by its name."""


@click.command(help=__doc__)
@click.option("--python-version", required=True, help="Of that machine, such as 3.12.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="wheelhouse",
    show_default=True,
)
@click.option("--extras", default="", help="Of pyproject.toml, such as 'dev' or 's3 ray'.")
@click.option(
    "--without", default="", help="What else that machine has, as 'transformers pyarrow'."
)
@click.option("--list", "is_list", is_flag=True, help="Print what would be downloaded, and end.")
def main(python_version: str, out: Path, extras: str, without: str, is_list: bool) -> None:
    try:
        lines = pinned(
            needed(roots(extras.split()), python_version, without.split(), installed_requirements),
            pins((_ROOT / "constraints.txt").read_text("utf-8")),
        )
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if is_list:
        click.echo("\n".join(lines))
        return
    out.mkdir(parents=True, exist_ok=True)
    requirements = out / "requirements.txt"
    requirements.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    download(out, requirements, python_version)
    size = sum(path.stat().st_size for path in out.iterdir())
    click.echo(f"{len(lines)} packages, {size / 1e6:,.0f} MB, in {out}. On that machine:")
    click.echo(
        f"  python3 -m pip install --no-index --find-links {out} --no-deps -r {requirements}"
    )


def install_line(out: Path) -> str:
    """What installs the wheels in ``out``, and nothing else."""
    return (
        f"python3 -m pip install --no-index --find-links {out} --no-deps -r {out}/requirements.txt"
    )


def roots(extras: Iterable[str]) -> list[Requirement]:
    """What the project, these extras and the GPU's tests ask for. Raises ValueError."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    optional: dict[str, list[str]] = project["optional-dependencies"]
    unknown = set(extras) - set(optional)
    if unknown:
        raise ValueError(f"extras {sorted(unknown)}: pyproject.toml has {sorted(optional)}")
    texts = [*project["dependencies"], *_FOR_TESTS]
    return [Requirement(text) for text in (*texts, *(t for e in extras for t in optional[e]))]


def needed(
    asked: Iterable[Requirement], python_version: str, without: Iterable[str], metadata: Metadata
) -> set[str]:
    """The names of ``asked`` and of all that these depend on, on a Linux machine with this Python.

    What the machine has is left out, with what only it depends on.
    """
    left_out = {str(canonicalize_name(name)) for name in without}
    seen: set[tuple[str, str]] = set()
    todo = [(requirement, "") for requirement in asked]
    while todo:
        requirement, extra = todo.pop()
        environment = {
            "python_version": python_version,
            "python_full_version": f"{python_version}.0",
            "sys_platform": "linux",
            "extra": extra,
        }
        name = str(canonicalize_name(requirement.name))
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        if _ON_THE_MACHINE.fullmatch(name) or name in left_out:
            continue
        for own_extra in {"", *requirement.extras} - {e for n, e in seen if n == name}:
            seen.add((name, own_extra))
            todo += [(Requirement(text), own_extra) for text in metadata(name)]
    return {name for name, _ in seen}


def installed_requirements(name: str) -> list[str]:
    """Of a package that is installed here. Raises ValueError if it is not."""
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(
            f"{name} is not installed here, so what it depends on is not known. Run `make setup` "
            "first, and this with its Python."
        ) from error


def pins(constraints: str) -> dict[str, str]:
    """``name==version`` by canonical name."""
    lines = (line.strip() for line in constraints.splitlines())
    kept = (line for line in lines if line and not line.startswith("#"))
    return {str(canonicalize_name(line.partition("==")[0])): line for line in kept}


def pinned(names: Iterable[str], lines: Mapping[str, str]) -> list[str]:
    """The pins of ``names``, in order. Raises ValueError for one without."""
    missing = sorted(set(names) - set(lines))
    if missing:
        raise ValueError(f"constraints.txt has no version of {', '.join(missing)}. Add one.")
    return [lines[name] for name in sorted(names)]


def download(out: Path, requirements: Path, python_version: str) -> None:
    """Fetch wheels; what is published without any is built, and must be for every Python.

    Raises CalledProcessError where pip fails, which says why, and ClickException.
    """
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    which = ("--no-deps", "--python-version", python_version, "--implementation", "cp")
    subprocess.run(
        (*pip, "download", "--dest", str(out), *which, "-r", str(requirements)), check=True
    )
    for source in sorted(out.iterdir()):
        if source.suffix == ".whl" or source == requirements:
            continue
        before = set(out.glob("*.whl"))
        subprocess.run((*pip, "wheel", "--no-deps", "--wheel-dir", str(out), source), check=True)
        (built,) = set(out.glob("*.whl")) - before
        if not built.name.endswith("-none-any.whl"):
            built.unlink()
            raise click.ClickException(
                f"{source.name} has no wheel for Python {python_version}, and one that is built "
                "here would run here alone. Build it on such a machine."
            )
        source.unlink()


if __name__ == "__main__":
    main()
