"""The command line: its help, its exit codes, and what it says on the way out."""

import errno
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import Result

from cache_format.errors import CorruptShardError
from pipeline.cli import main
from tests.support import ROOT
from tests.support.command_line import fail_with, run

_COMMANDS = sorted(main.commands)


class TestHelp:
    def test_the_command_line_has_exactly_these_commands(self) -> None:
        assert set(_COMMANDS) == {
            *("cache-teacher", "train-student", "recipes", "inspect", "verify"),
            "estimate",
            *("pack", "unpack", "merge", "extend", "export", "generate", "demo"),
            *("convert", "evaluate", "win-and-tie", "merge-students", "push"),
            *("report", "compare", "ablate", "watch", "doctor"),
        }

    @pytest.mark.parametrize("name", _COMMANDS)
    def test_every_option_of_every_command_has_help_text(self, name: str) -> None:
        text = run(name, "--help").output
        for parameter in main.commands[name].params:
            assert (parameter.opts[-1] if isinstance(parameter, click.Option) else "") in text
            if isinstance(parameter, click.Option) and parameter.name not in ("help",):
                assert parameter.help or parameter.show_default, parameter.name

    @pytest.mark.parametrize("name", [None, *_COMMANDS])
    def test_examples_in_help_use_only_existing_options_and_arguments(
        self, name: str | None
    ) -> None:
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
    def test_help_says_how_to_resume(self, name: str, expected: str) -> None:
        assert expected in " ".join(run(name, "--help").output.split())

    def test_one_line_help_of_each_command_is_not_truncated(self) -> None:
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

    def test_python_m_pipeline_runs_the_command_line(self) -> None:
        finished = subprocess.run(
            [sys.executable, "-m", "pipeline", "recipes"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        assert "distil-xlstm" in finished.stdout

    def test_as_a_module_it_imports_nothing_from_the_working_directory(
        self, tmp_path: Path
    ) -> None:
        canary = tmp_path / "canary"
        for name in ("json", "click", "importlib_resources", "tomllib", "dataclasses"):
            (tmp_path / f"{name}.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
        finished = subprocess.run(
            [sys.executable, "-m", "pipeline", "recipes"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        assert "distil-xlstm" in finished.stdout
        assert not canary.exists()


@pytest.mark.parametrize("name", ["inspect", "verify", "generate"])
def test_a_nonexistent_path_is_a_usage_error(name: str, tmp_path: Path) -> None:
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
    def test_a_known_error_prints_its_message_without_a_traceback(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
    ) -> None:
        result = self.failed(monkeypatch, tmp_path, error)
        assert result.exit_code == 1
        assert "Error: what, where, next\n" in result.stderr
        assert "PIPELINE_DEBUG=1" in result.stderr
        assert "Traceback" not in result.stderr

    def test_a_permission_error_names_the_path_and_the_fix(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        error = PermissionError(errno.EACCES, "Permission denied", "a/run")
        result = self.failed(monkeypatch, tmp_path, error)
        assert result.exit_code == 1
        assert "Error: a/run: Permission denied. Make it and its" in result.stderr
        assert "PIPELINE_DEBUG" not in result.stderr

    def test_a_cache_error_prints_its_message_alone(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        result = self.failed(monkeypatch, tmp_path, CorruptShardError("shard 3. Do this."))
        assert result.exit_code == 1
        assert result.stderr == "Error: shard 3. Do this.\n"

    def test_pipeline_debug_shows_the_traceback(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        result = self.failed(monkeypatch, tmp_path, ValueError("bad"), PIPELINE_DEBUG="1")
        assert result.exit_code == 1
        assert "Traceback" in result.stderr
        assert "in failing" in result.stderr

    def test_out_of_memory_suggests_lowering_the_values_of_the_recipe(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        result = self.failed(monkeypatch, tmp_path, RuntimeError("CUDA out of memory."))
        assert result.exit_code == 1
        assert "head_chunk (now 1024)" in result.stderr

    def test_ctrl_c_exits_130_and_says_what_is_kept(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        result = self.failed(monkeypatch, tmp_path, KeyboardInterrupt())
        assert result.exit_code == 130
        assert "Interrupted. Finished shards are kept" in result.stderr

    def test_an_assertion_error_keeps_its_traceback(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        result = self.failed(monkeypatch, tmp_path, AssertionError("a bug"))
        assert result.exit_code == 1
        assert isinstance(result.exception, AssertionError)

    def test_a_closed_output_pipe_is_no_failure(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """``pipeline inspect … | head``: click itself ends quietly."""
        error = BrokenPipeError(32, "Broken pipe")
        assert "Error" not in self.failed(monkeypatch, tmp_path, error).stderr


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
def test_signals_end_a_real_process_with_the_right_exit_code(
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
