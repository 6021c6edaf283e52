"""Options of ``pipeline cache-teacher`` that are refused."""

from pathlib import Path

import pytest

from tests.support.command_line import run


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--recipe", "demo", "--set", "cache_teacher.topk=1"], 'the nearest is "top_k"'),
        (
            ["--recipe", "demo", "--set", "train_student.seed=1"],
            "does not read [train_student]",
        ),
        (["--recipe", "demo", "--tokens", "many"], "--tokens many: expected a whole number"),
        (["--recipe", "x.toml"], "x.toml: neither a file"),
        ([], "Missing option '--recipe'"),
    ],
)
def test_a_bad_recipe_or_setting_is_refused_and_nothing_is_written(
    tmp_path: Path, arguments: list[str], expected: str
) -> None:
    result = run("cache-teacher", "--out", tmp_path / "cache", *arguments)
    assert result.exit_code == 2
    assert expected in result.stderr
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--units", "7"], "Invalid value for --units: '7': expected FIRST:END"),
        (["--worker", "7"], "Invalid value for --worker: '7': expected r/R"),
        (["--worker", "8/8"], "workers count from 0 to 7"),
        (["--worker", "auto"], "neither RANK and WORLD_SIZE (torchrun)"),
        (["--worker", "0/2", "--units", "0:5"], "give only one"),
        (["--engine", "ray", "--units", "0:5"], "leave out --units and --worker"),
        (["--engine", "ray", "--worker", "0/2"], "leave out --units and --worker"),
        (["--ray-workers", "2"], "go with --engine ray"),
        (["--ray-address", "auto"], "go with --engine ray"),
        (["--engine", "dask"], "Invalid value for '--engine'"),
        (["--summary", "cache/summary.json"], "is inside cache; choose another place"),
        (["--log-file", "cache/log"], "is inside cache; choose another place"),
        (["--log-file", "nowhere/log"], "nowhere: no such directory"),
        (["--summary", "nowhere/summary.json"], "nowhere: no such directory"),
    ],
)
def test_bad_units_and_worker_options_are_refused_and_nothing_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "SLURM_PROCID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    result = run("cache-teacher", "--recipe", "demo", "--out", "cache", *arguments)
    assert result.exit_code == 2
    assert expected in result.stderr
    assert list(tmp_path.iterdir()) == []
