"""What a machine without a package index needs, and what is left out since it has that."""

import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement

from benchmarks.gpu import wheelhouse
from benchmarks.gpu.wheelhouse import download, install_line, needed, pinned, pins
from tests.support import ROOT

METADATA = {
    "app": ["torch>=2", "Data_Sets>=4", "old; python_version < '3.12'", "s3; extra == 's3'"],
    "data-sets": ["arrow", "mini[fast]; sys_platform == 'linux'", "win; sys_platform == 'win32'"],
    "mini": ["quick; extra == 'fast'", "slow; extra == 'thorough'"],
    "s3": ["data-sets"],
}


def names(*asked: str, version: str = "3.12", without: tuple[str, ...] = ()) -> set[str]:
    requirements = [Requirement(text) for text in asked]
    return needed(requirements, version, without, lambda name: METADATA.get(name, []))


def test_what_others_depend_on_is_needed_too() -> None:
    assert names("app") == {"app", "data-sets", "arrow", "mini", "quick"}
    assert names("app", version="3.11") == names("app") | {"old"}
    assert names("app[s3]") == names("app") | {"s3"}
    assert names("mini", "mini[thorough]") == {"mini", "slow"}


def test_what_the_machine_has_is_left_out() -> None:
    assert names("torch", "triton>=3", "nvidia-nccl-cu13", "torchlike") == {"torchlike"}
    assert names("app", without=("Data_Sets",)) == {"app"}


def test_versions_are_the_pinned_ones() -> None:
    found = pins("# exact\nData_Sets==4.1\n\nquick==1.0\n")
    assert pinned({"quick", "data-sets"}, found) == ["Data_Sets==4.1", "quick==1.0"]
    with pytest.raises(ValueError, match=r"constraints\.txt has no version of other"):
        pinned({"quick", "other"}, found)


def listed(*options: str) -> set[str]:
    arguments = ["--python-version", "3.12", "--list", *options]
    result = CliRunner().invoke(wheelhouse.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return set(result.stdout.split())


def test_this_project_s_packages_are_listed_without_the_machine_s() -> None:
    usual, all_of_it = listed(), listed("--extras", "dev")
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    pinned_lines = {line for line in constraints if line and not line.startswith("#")}
    assert usual < all_of_it < pinned_lines
    names_of = {line.partition("==")[0] for line in usual}
    assert names_of > {"datasets", "xlstm", "zstandard", "tomli_w", "transformers", "pytest"}
    assert not {name for name in names_of if name.startswith(("torch", "triton", "nvidia"))}
    assert "ray" not in names_of
    assert {line for line in usual - listed("--without", "transformers pyarrow")} > {
        line for line in usual if line.startswith(("transformers==", "pyarrow=="))
    }


def test_an_unknown_extra_is_refused() -> None:
    result = CliRunner().invoke(wheelhouse.main, ["--python-version", "3.12", "--extras", "gpus"])
    assert result.exit_code == 1
    assert "pyproject.toml has ['browser', 'dev', 'docs', 'eval'" in result.stderr


def fake_pip(monkeypatch: pytest.MonkeyPatch, built: str) -> list[tuple[str, ...]]:
    """In place of pip: what it is asked for; it fetches a wheel and a source, and builds that."""
    calls: list[tuple[str, ...]] = []

    def run(command: tuple[Any, ...], check: bool) -> None:
        assert check
        words = tuple(map(str, command))
        calls.append(words)
        if "download" in words:
            out = Path(words[words.index("--dest") + 1])
            (out / "zstandard-0.25-cp312-cp312-manylinux_2_17_x86_64.whl").touch()
            (out / "rouge_score-0.1.2.tar.gz").touch()
        else:
            (Path(words[words.index("--wheel-dir") + 1]) / built).touch()

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_what_is_published_without_wheels_is_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = fake_pip(monkeypatch, "rouge_score-0.1.2-py3-none-any.whl")
    requirements = tmp_path / "requirements.txt"
    requirements.touch()
    download(tmp_path, requirements, "3.12")
    assert {path.suffix for path in tmp_path.iterdir()} == {".whl", ".txt"}
    assert len(calls) == 2
    assert {"--no-deps", "--python-version", "3.12"} < set(calls[0])
    assert calls[1][-1].endswith("rouge_score-0.1.2.tar.gz")
    assert f"--find-links {tmp_path} --no-deps" in install_line(tmp_path)


def test_a_wheel_that_would_run_here_alone_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_pip(monkeypatch, "rouge_score-0.1.2-cp311-cp311-linux_x86_64.whl")
    with pytest.raises(click.ClickException, match=r"has no wheel for Python 3\.12"):
        download(tmp_path, tmp_path / "requirements.txt", "3.12")
    assert not list(tmp_path.glob("rouge*.whl"))
