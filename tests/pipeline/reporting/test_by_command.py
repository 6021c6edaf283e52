"""``--json``, ``--quiet`` and ``--log-file`` of both stages, as a person types them."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.support import tiny
from tests.support.command_line import run

_RECIPE = """
[train_student.student]
num_blocks = 1
slstm_at = []
num_heads = 2
qkv_block_size = 4
[train_student]
batch_size = 4
gradient_accumulation_steps = 1
max_steps = 2
precision = "fp32"
compile = "off"
"""

Words = tuple[str | Path, ...]


def events(result: Result) -> list[dict[str, Any]]:
    """Standard output, every line of which is an event."""
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert all(list(event)[:2] == ["event", "time"] for event in found)
    return found


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    root = tmp_path_factory.mktemp("places")
    teacher = tiny.save_tiny_teacher(root / "teacher")
    corpus = tiny.write_fineweb_parquet(root / "corpus.parquet", tiny.tiny_texts(60))
    return (
        *("--set", f"cache_teacher.teacher={teacher}", "--set", f"cache_teacher.corpus={corpus}"),
        *("--set", "cache_teacher.compile=off", "--set", "cache_teacher.sequence_length=32"),
    )


def test_cache_teacher_reports_to_json_log_file_and_terminal(
    places: tuple[str, ...], tmp_path: Path
) -> None:
    """The recipe `small`, with nothing but teacher and corpus named (and rows that fit them)."""
    command: Words = (
        "cache-teacher",
        "--recipe",
        "small",
        "--out",
        tmp_path / "cache",
        *places,
    )
    first = run(*command, "--json", "--quiet", "--log-file", tmp_path / "log")
    assert first.exit_code == 0, first.output
    assert first.stderr == ""
    found = events(first)
    names = [event["event"] for event in found]
    assert (names[0], names[-1]) == ("start", "done")
    assert {"phase", "progress"} < set(names)
    assert found[0]["command"] == "cache-teacher"
    assert [event["phase"] for event in found if event["event"] == "phase"] == [
        *("resolving", "loading teacher", "caching", "corpus ended")
    ]
    assert found[-1]["out"] == str(tmp_path / "cache")
    assert found[-1]["complete"]
    assert found[-1]["cache"]["tokens"] == found[-1]["run"]["tokens"] > 0
    log = (tmp_path / "log").read_text()
    assert "cache-teacher: recipe small" in log
    assert "(100.0%)" in log or "corpus ended" in log
    assert f"{tmp_path / 'cache'} holds " in log

    again = run(*command, "--quiet", "--summary", tmp_path / "summary.json")
    assert again.exit_code == 0, again.output
    assert again.stderr == ""
    assert len(again.stdout.splitlines()) == 1
    assert again.stdout.startswith(f"{tmp_path / 'cache'} holds ")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["cache"] == found[-1]["cache"]


def test_train_student_reports_to_json_log_file_and_terminal(
    tiny_cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipe.toml").write_text(_RECIPE)
    command: Words = (
        "train-student",
        "--recipe",
        tmp_path / "recipe.toml",
        "--cache",
        tiny_cache,
    )
    out = tmp_path / "run"
    first = run(*command, "--out", out, "--json", "--log-file", tmp_path / "log")
    assert first.exit_code == 0, first.output
    found = events(first)
    names = [event["event"] for event in found]
    assert (names[0], names[-1]) == ("start", "done")
    assert {"progress", "validation", "checkpoint"} < set(names)
    validation = next(event for event in found if event["event"] == "validation")
    assert (validation["step"], validation["kl_temperature"]) == (0, 1.0)
    checkpoint = next(event for event in found if event["event"] == "checkpoint")
    assert Path(checkpoint["path"]).is_dir()
    assert found[-1]["model"] == str(out / "model")
    assert found[-1]["metrics"]["validation/loss"] > 0
    assert "KL(T=2) " in first.stderr
    assert "KL(T=1) to teacher " in first.stderr
    shown = [line for line in first.stderr.splitlines() if "checkpoint" in line]
    logged = [line.split(" ", 1)[1] for line in (tmp_path / "log").read_text().splitlines()]
    assert shown
    assert set(shown) < set(logged)

    again = run(*command, "--out", out, "--resume", "--quiet")
    assert again.exit_code == 0, again.output
    assert again.stderr == ""
    assert again.stdout.startswith(f"{out / 'model'} holds the student. Validation: loss ")
    assert len(again.stdout.splitlines()) == 1


class TestFailures:
    @pytest.mark.parametrize(
        ("arguments", "exit_code", "expected"),
        [
            (["--recipe", "small"], 2, "recipe small: cache_teacher.teacher and"),
            (["--recipe", "small", "--worker", "8/8"], 2, "workers count from 0 to 7"),
            (
                [
                    *("--recipe", "distil-xlstm", "--set", "cache_teacher.teacher=./gone"),
                    *("--set", "cache_teacher.corpus=./gone"),
                ],
                1,
                "no such directory",
            ),
        ],
    )
    def test_an_error_is_an_event(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        arguments: list[str],
        exit_code: int,
        expected: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        options = ["--json", "--log-file", "log", "--quiet"]
        result = run("cache-teacher", "--out", "cache", *arguments, *options)
        assert result.exit_code == exit_code
        last = events(result)[-1]
        assert last["event"] == "error"
        assert last["exit_code"] == exit_code
        assert expected in last["message"]
        assert expected in result.stderr
        assert expected in Path("log").read_text()

    @pytest.mark.parametrize(
        ("error", "exit_code", "expected"),
        [
            (KeyboardInterrupt(), 130, "Interrupted. Finished shards are kept"),
            (ValueError("what, where, next"), 1, "what, where, next"),
            (AssertionError("a bug"), 1, "AssertionError: a bug"),
        ],
    )
    def test_whatever_ends_the_command_is_the_last_event(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        error: BaseException,
        exit_code: int,
        expected: str,
    ) -> None:
        def failing(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr("stages.cache_teacher.run.cache_teacher", failing)
        command: Words = (
            "cache-teacher",
            "--recipe",
            "distil-xlstm",
            "--out",
            tmp_path / "out",
        )
        result = run(*command, "--json")
        assert result.exit_code == exit_code
        last = events(result)[-1]
        assert (last["event"], last["exit_code"]) == ("error", exit_code)
        assert expected in last["message"]

    def test_a_log_file_that_cannot_be_written_is_refused(self, tmp_path: Path) -> None:
        command: Words = (
            "cache-teacher",
            "--recipe",
            "distil-xlstm",
            "--out",
            tmp_path / "out",
        )
        result = run(*command, "--log-file", "/proc/log")
        assert result.exit_code == 1
        assert "/proc/log" in result.stderr
        assert not (tmp_path / "out").exists()

    def test_only_the_first_of_several_processes_reports(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RANK", "1")
        (tmp_path / "cache").mkdir()
        command: Words = (
            "train-student",
            "--recipe",
            "small",
            "--cache",
            tmp_path / "cache",
            "--out",
            "run",
        )
        result = run(*command, "--json", "--log-file", tmp_path / "log")
        assert result.exit_code == 1
        assert result.stdout == ""
        assert "not a cache: expected manifest.json" in result.stderr
        assert not (tmp_path / "log").exists()


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    places: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "cache"
    command: Words = (
        "cache-teacher",
        "--recipe",
        "small",
        "--out",
        out,
        *places,
        "--dry-run",
    )
    text = run(*command)
    assert text.exit_code == 0, text.output
    assert text.stdout.startswith(f"1.00M more tokens would be cached in {out}")
    for line in ("cache id", "teacher", "corpus", "targets", "rows", "validation", "held", "size"):
        assert f"\n  {line} " in text.stdout
    (*_, done) = events(run(*command, "--json"))
    assert done["event"] == "done"
    assert done["dry_run"]
    assert done["tokens_to_cache"] == done["tokens"] == 1_000_000
    assert done["corpus"]["units"] == 2
    assert f"cache id    {done['cache_id']}" in text.stdout
    assert list(tmp_path.iterdir()) == []
    refused = run(*command, "--set", "cache_teacher.top_k=5000")
    assert refused.exit_code == 1
    assert "top_k: 5000 is more than" in refused.stderr


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("targets=hidden", "the transform of hidden states (targets=hidden) needs"),
        ("tail_moment_dim=4", "the basis of the tail's moments (tail_moment_dim=4) needs"),
        ("hidden_projection=pca", "principal components (hidden_projection=pca) need"),
    ],
)
def test_a_dry_run_leaves_open_what_is_fitted_to_the_teacher(
    places: tuple[str, ...], tmp_path: Path, setting: str, what: str
) -> None:
    command: Words = ("cache-teacher", "--recipe", "small", "--out", tmp_path / "cache", *places)
    command = (*command, "--dry-run", "--set", f"cache_teacher.{setting}")
    text = run(*command)
    assert text.exit_code == 0, text.output
    assert f"cache id    unknown: {what} the loaded teacher\n" in text.stdout
    (*_, done) = events(run(*command, "--json"))
    assert done["cache_id"] is None
    assert done["sketch"]["projection_sha256"] is None
    if setting == "targets=hidden":
        assert (
            "hidden, states with a KL of 0.05 nats to the teacher at T = 1; any temperature;"
            in text.stdout
        )
        hidden = done["targets"]["hidden"]
        assert hidden.pop("max_kl") == 0.05
        assert set(hidden.values()) == {None}
    else:
        assert done["targets"]["hidden"] is None
        assert "temperatures 2, 1.6, 1.33333, 1.14286, 1;" in text.stdout
