"""The command line: its help, its exit codes, and what it says on the way out."""

import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from cache_format.errors import CorruptShardError
from pipeline.cli import main
from tests.support import ROOT

_COMMANDS = sorted(main.commands)


def run(*arguments: str | Path, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], env=env)


def fail_with(error: BaseException) -> Callable[..., Any]:
    def failing(*_: object, **__: object) -> None:
        raise error

    return failing


class TestHelp:
    def test_commands(self) -> None:
        assert set(_COMMANDS) == {
            *("cache-teacher", "train-student", "recipes", "inspect", "verify"),
            "estimate",
            *("pack", "unpack", "merge", "extend", "export", "generate", "demo"),
            *("evaluate", "push"),
        }

    @pytest.mark.parametrize("name", _COMMANDS)
    def test_every_option_is_explained(self, name: str) -> None:
        text = run(name, "--help").output
        for parameter in main.commands[name].params:
            assert (parameter.opts[-1] if isinstance(parameter, click.Option) else "") in text
            if isinstance(parameter, click.Option) and parameter.name not in ("help",):
                assert parameter.help or parameter.show_default, parameter.name

    @pytest.mark.parametrize("name", [None, *_COMMANDS])
    def test_the_examples_are_valid(self, name: str | None) -> None:
        """Every example's options and number of arguments are those of the command it names."""
        text = run(*([name] if name else []), "--help").output
        examples = re.findall(r"^ +pipeline ([a-z].*)$", text, flags=re.MULTILINE)
        assert examples
        assert name is None or any(example.split()[0] == name for example in examples)
        for example in examples:
            words = shlex.split(re.split(" [>|] ", example)[0])
            command = main.commands[words[0]]
            context = click.Context(command, info_name=words[0])
            _, rest, _ = command.make_parser(context).parse_args(words[1:])
            assert rest == []

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("cache-teacher", "run the same command again"),
            ("train-student", "with --resume"),
            ("demo", "Run it again to resume"),
        ],
    )
    def test_resuming_is_explained(self, name: str, expected: str) -> None:
        assert expected in " ".join(run(name, "--help").output.split())

    def test_short_help_is_not_cut(self) -> None:
        lines = run("--help").output.partition("Commands:\n")[2].splitlines()
        assert [line.split()[0] for line in lines] == list(main.commands)
        assert all(line.endswith(".") and not line.endswith("...") for line in lines)

    def test_help_imports_nothing_heavy(self) -> None:
        program = """
import sys
from click.testing import CliRunner
from pipeline.cli import main
for arguments in ([], *([name] for name in main.commands)):
    assert CliRunner().invoke(main, [*arguments, "--help"]).exit_code == 0
heavy = {"torch", "transformers", "datasets", "pyarrow", "numpy", "tqdm", "huggingface_hub"}
print(sorted(heavy & set(sys.modules)))
"""
        finished = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
        )
        assert finished.stdout.strip() == "[]", finished.stderr

    def test_as_a_module(self) -> None:
        finished = subprocess.run(
            [sys.executable, "-m", "pipeline", "recipes"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        assert "distil-xlstm" in finished.stdout


class TestRecipes:
    def test_list(self) -> None:
        lines = run("recipes").output.splitlines()
        assert [line.split()[0] for line in lines] == ["distil-xlstm", "small"]
        assert "Qwen2.5-1.5B" in lines[0]

    def test_print(self) -> None:
        shipped = ROOT / "pipeline" / "recipes" / "distil-xlstm.toml"
        assert run("recipes", "distil-xlstm").output == shipped.read_text()

    def test_unknown(self) -> None:
        result = run("recipes", "distil")
        assert result.exit_code == 2
        assert "distil: neither a file nor one of the shipped recipes" in result.stderr


class TestRefusals:
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
    def test_cache_teacher(self, tmp_path: Path, arguments: list[str], expected: str) -> None:
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
            (["--summary", "cache/summary.json"], "is inside cache; name another place"),
            (["--log-file", "cache/log"], "is inside cache; name another place"),
            (["--log-file", "nowhere/log"], "nowhere: no such directory"),
            (["--summary", "nowhere/summary.json"], "nowhere: no such directory"),
        ],
    )
    def test_who_makes_the_units(
        self,
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

    def test_train_student_reads_its_own_table(self, tmp_path: Path) -> None:
        result = run(
            *("train-student", "--recipe", "demo", "--cache", tmp_path, "--out", tmp_path / "run"),
            *("--set", "cache_teacher.top_k=8"),
        )
        assert result.exit_code == 2
        assert "--set cache_teacher.top_k=8: this command does not read" in result.stderr

    @pytest.mark.parametrize("number", ["inf", "nan", "1e300", "0"])
    def test_local_gib(self, tmp_path: Path, number: str) -> None:
        result = run(
            *("train-student", "--recipe", "demo", "--cache", tmp_path, "--out", tmp_path / "run"),
            *("--local-gib", number),
        )
        assert result.exit_code == 2
        assert "Invalid value for '--local-gib'" in result.stderr

    @pytest.mark.parametrize("number", ["inf", "nan", "-1"])
    def test_temperature(self, tmp_path: Path, number: str) -> None:
        result = run("generate", tmp_path, "--prompt", "a", "--temperature", number)
        assert result.exit_code == 2
        assert "Invalid value for '--temperature'" in result.stderr

    @pytest.mark.parametrize("name", ["inspect", "verify", "generate"])
    def test_a_path_that_is_not_there(self, name: str, tmp_path: Path) -> None:
        more = ["--prompt", "x"] if name == "generate" else []
        result = run(name, tmp_path / "nothing", *more)
        assert result.exit_code == 2
        assert "nothing' does not exist" in result.stderr


class TestFailures:
    """Every command goes through the same door; ``cache-teacher`` stands for them all."""

    def failed(
        self,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        error: BaseException,
        **env: str,
    ) -> Result:
        monkeypatch.setattr("stages.cache_teacher.run.cache_teacher", fail_with(error))
        return run("cache-teacher", "--recipe", "distil-xlstm", "--out", tmp_path / "out", env=env)

    @pytest.mark.parametrize(
        "error", [ValueError("what, where, next"), OSError("what, where, next")]
    )
    def test_known(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception) -> None:
        result = self.failed(monkeypatch, tmp_path, error)
        assert result.exit_code == 1
        assert "Error: what, where, next\n" in result.stderr
        assert "PIPELINE_DEBUG=1" in result.stderr
        assert "Traceback" not in result.stderr

    def test_what_the_system_forbids(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        error = PermissionError(errno.EACCES, "Permission denied", "a/run")
        result = self.failed(monkeypatch, tmp_path, error)
        assert result.exit_code == 1
        assert "Error: a/run: Permission denied. Make it and its" in result.stderr
        assert "PIPELINE_DEBUG" not in result.stderr

    def test_a_cache_error_says_all(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        result = self.failed(monkeypatch, tmp_path, CorruptShardError("shard 3. Do this."))
        assert result.exit_code == 1
        assert result.stderr == "Error: shard 3. Do this.\n"

    def test_debug_shows_the_traceback(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        result = self.failed(monkeypatch, tmp_path, ValueError("bad"), PIPELINE_DEBUG="1")
        assert result.exit_code == 1
        assert "Traceback" in result.stderr
        assert "in failing" in result.stderr

    def test_out_of_memory_names_the_recipes_values(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        result = self.failed(monkeypatch, tmp_path, RuntimeError("CUDA out of memory."))
        assert result.exit_code == 1
        assert "head_chunk (now 1024)" in result.stderr

    def test_interrupted(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        result = self.failed(monkeypatch, tmp_path, KeyboardInterrupt())
        assert result.exit_code == 130
        assert "Interrupted. Finished shards are kept" in result.stderr

    def test_a_bug_keeps_its_traceback(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        result = self.failed(monkeypatch, tmp_path, AssertionError("a bug"))
        assert result.exit_code == 1
        assert isinstance(result.exception, AssertionError)

    def test_a_reader_that_left_is_no_failure(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """``pipeline inspect … | head``: click itself ends quietly."""
        error = BrokenPipeError(32, "Broken pipe")
        assert "Error" not in self.failed(monkeypatch, tmp_path, error).stderr


class TestInspect:
    def test_text(self, tiny_cache: Path) -> None:
        result = run("inspect", tiny_cache)
        assert result.exit_code == 0, result.output
        assert ": complete" in result.output

    def test_json(self, tiny_cache: Path) -> None:
        summary = json.loads(run("inspect", tiny_cache, "--json").output)
        assert summary["spec"]["targets"]["top_k"] == 12
        decoded = json.loads(
            run("inspect", tiny_cache, "--json", "--row", "1", "--split", "validation").output
        )
        assert (decoded["split"], decoded["row"]) == ("validation", 1)

    def test_row(self, tiny_cache: Path) -> None:
        result = run("inspect", tiny_cache, "--row", "0")
        assert result.output.startswith("train row 0, unit 1: ")

    def test_no_cache(self, tmp_path: Path) -> None:
        result = run("inspect", tmp_path)
        assert result.exit_code == 1
        assert "no cache: expected manifest.json" in result.stderr


class TestVerify:
    def test_good(self, tiny_cache: Path) -> None:
        result = run("verify", tiny_cache)
        assert result.exit_code == 0, result.output
        assert "every byte is as it was written" in result.stdout
        assert "100.0%" in result.stderr

    def test_every_bad_file_is_named(self, tiny_cache: Path, tmp_path: Path) -> None:
        cache = shutil.copytree(tiny_cache, tmp_path / "cache")
        flipped, missing, *_ = sorted((cache / "shards").iterdir())
        data = bytearray(flipped.read_bytes())
        data[len(data) // 2] ^= 1
        flipped.write_bytes(data)
        missing.unlink()
        result = run("verify", cache)
        assert result.exit_code == 1
        assert str(flipped) in result.stdout
        assert str(missing) in result.stdout
        assert f"{cache}: 2 bad." in result.stdout
        assert len(result.stdout.splitlines()) == 3

    def test_not_finished(self, tiny_cache: Path, tmp_path: Path) -> None:
        cache = shutil.copytree(tiny_cache, tmp_path / "cache")
        (cache / "manifest.json").unlink()
        result = run("verify", cache)
        assert result.exit_code == 0
        assert "It is not complete" in result.stdout


class TestDemo:
    """The demo's own results are tested with the demo; here is how it is called."""

    def test_its_commands_run(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def demo(out: Path, command: Callable[[list[str]], None], *, seed: int) -> None:
            assert (out, seed) == (tmp_path / "out", 3)
            command(["recipes"])

        monkeypatch.setattr("pipeline.demo.run.run_demo", demo)
        result = run("demo", "--out", tmp_path / "out", "--seed", "3")
        assert result.exit_code == 0, result.output
        assert "distil-xlstm" in result.output

    @pytest.mark.parametrize(
        ("error", "code", "expected"),
        [
            (ValueError("no teacher"), 1, "Error: no teacher"),
            (KeyboardInterrupt(), 130, "Interrupted. What is finished is kept"),
        ],
    )
    def test_a_failure_within_is_said_once(
        self,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        error: BaseException,
        code: int,
        expected: str,
    ) -> None:
        def demo(out: Path, command: Callable[[list[str]], None], *, seed: int) -> None:
            command(["cache-teacher", "--recipe", "distil-xlstm", "--out", str(out)])
            pytest.fail("went on after a failure")

        monkeypatch.setattr("pipeline.demo.run.run_demo", demo)
        monkeypatch.setattr("stages.cache_teacher.run.cache_teacher", fail_with(error))
        result = run("demo", "--out", tmp_path / "out")
        assert result.exit_code == code
        assert result.stderr.count(expected) == 1
        assert "went on" not in result.output

    def test_wrong_usage_within(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def demo(out: Path, command: Callable[[list[str]], None], *, seed: int) -> None:
            command(["cache-teacher"])

        monkeypatch.setattr("pipeline.demo.run.run_demo", demo)
        assert run("demo", "--out", tmp_path).exit_code == 2


@pytest.mark.skipif(os.name != "posix", reason="signals are sent as on POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_finalizer_drops_is_repeated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    class Dropping:
        def __del__(self) -> None:
            signal.raise_signal(number)

    def cache_teacher(*_: object, **__: object) -> None:
        Dropping()  # which ends here, and takes the signal with it
        time.sleep(20)
        pytest.fail("went on")

    monkeypatch.setattr("stages.cache_teacher.run.cache_teacher", cache_teacher)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = run("cache-teacher", "--recipe", "distil-xlstm", "--out", tmp_path / "cache")
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == {signal.SIGINT: 130, signal.SIGTERM: 143}[signal.Signals(number)]


@pytest.mark.skipif(os.name != "posix", reason="signals are sent as on POSIX")
@pytest.mark.parametrize(
    ("name", "code", "expected"),
    [("SIGINT", 130, "Interrupted."), ("SIGTERM", 143, "Terminated by a signal (SIGTERM).")],
)
def test_signals_to_a_process_of_its_own(
    tmp_path: Path, name: str, code: int, expected: str
) -> None:
    """The signal itself, not the exception that stands for it elsewhere in this file."""
    program = f"""
import os, signal
import stages.cache_teacher.run as stage
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's is ignored
from pipeline.cli import main
stage.cache_teacher = lambda *_, **__: os.kill(os.getpid(), signal.{name})
main(["cache-teacher", "--recipe", "distil-xlstm", "--out", "cache"], prog_name="pipeline")
"""
    finished = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert finished.returncode == code, finished.stderr
    assert f"{expected} Finished shards are kept" in finished.stderr
