"""Ctrl-C and SIGTERM during a training: a checkpoint, a next step, and nothing lost."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from pipeline.runtime.session import Terminated
from pipeline.runtime.signals import asked_to_stop
from stages.train_student.trainer.stopping import StopNow

_RECIPE = """
[train_student.student]
num_blocks = 2
slstm_at = [0]
num_heads = 2
qkv_block_size = 4
[train_student]
batch_size = 2
gradient_accumulation_steps = 2
max_steps = 4
precision = "fp32"
compile = "off"
save_steps = 100
"""
_PROGRAM = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's is ignored
from pipeline.cli import main
from stages.train_student.trainer.optimizer_step import Updater

accumulate, count, number = Updater.accumulate, 0, getattr(signal, sys.argv[1], None)

def signalled(*arguments):
    global count
    count += 1
    if count == 2 and number:
        os.kill(os.getpid(), number)
        print("not interrupted", file=sys.stderr)
    return accumulate(*arguments)

Updater.accumulate = signalled
main(sys.argv[2:], prog_name="pipeline")
"""


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stderr: str


def train(server: ForkServerContext, name: str, recipe: Path, cache: Path, out: Path) -> Done:
    """Train, and send the signal ``name`` in the midst of the second step."""
    errors = out.with_name("stderr")
    arguments = ["train-student", "--recipe", str(recipe), "--cache", str(cache)]
    process = server.Process(
        target=run_program, args=([name, *arguments, "--out", str(out), "--resume"], errors)
    )
    process.start()
    process.join()
    assert process.exitcode is not None
    return Done(process.exitcode, errors.read_text())


def run_program(arguments: list[str], errors: Path) -> None:
    """``_PROGRAM`` in a process of its own, its standard error in a file."""
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), sys.stderr.fileno())
    sys.argv = ["-c", *arguments]
    exec(_PROGRAM, {})


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(_RECIPE)
    return path


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory,
    fork_server: ForkServerContext,
    tiny_cache: Path,
    recipe: Path,
) -> Path:
    """A run that nobody stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = train(fork_server, "none", recipe, tiny_cache, out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [("SIGINT", 130, "Interrupted."), ("SIGTERM", 143, "Terminated by a signal (SIGTERM).")],
)
def test_a_signal_saves_a_checkpoint_and_says_how_to_resume(
    fork_server: ForkServerContext,
    whole: Path,
    tiny_cache: Path,
    recipe: Path,
    tmp_path: Path,
    name: str,
    code: int,
    said: str,
) -> None:
    out = tmp_path / "run"
    stopped = train(fork_server, name, recipe, tiny_cache, out)
    assert stopped.returncode == code, stopped.stderr
    assert "Once more stops at once" in stopped.stderr
    assert f"{said} Run the same command with --resume to continue" in stopped.stderr
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-0000001"]
    assert "not interrupted" not in stopped.stderr
    done = train(fork_server, "none", recipe, tiny_cache, out)
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stderr
    expected = load_file(whole / "model" / "model.safetensors")
    for tensor_name, tensor in load_file(out / "model" / "model.safetensors").items():
        assert torch.equal(tensor, expected[tensor_name]), tensor_name


@pytest.fixture
def handlers() -> Iterator[None]:
    """A terminal's handlers, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("handlers")
class TestRequest:
    def test_the_second_signal_ends_the_command(self) -> None:
        with asked_to_stop() as request:
            assert not request.is_made()
            os.kill(os.getpid(), signal.SIGTERM)
            assert request.is_made()
            with pytest.raises(Terminated):
                os.kill(os.getpid(), signal.SIGTERM)

    def test_an_interruptible_block_is_interrupted_by_a_signal(self) -> None:
        reached = []
        with asked_to_stop() as request:
            with suppress(StopNow), request.interruptible():
                reached.append("begun")
                os.kill(os.getpid(), signal.SIGINT)
                reached.append("gone on")
            with suppress(StopNow), request.interruptible():
                reached.append("begun again")
        assert request.is_made()
        assert reached == ["begun"]

    def test_after_an_interruptible_block_a_signal_only_requests_a_stop(self) -> None:
        with asked_to_stop() as request:
            with request.interruptible():
                pass
            os.kill(os.getpid(), signal.SIGINT)
            assert request.is_made()

    def test_a_wait_for_another_process_is_interrupted(self) -> None:
        """Compilers are waited for, which a signal to this process alone does not reach."""
        command = f"sleep 0.3; kill -INT {os.getpid()}; exec sleep 60"
        child = subprocess.Popen(["sh", "-c", command])
        with asked_to_stop() as request, suppress(StopNow), request.interruptible():
            child.wait()
        is_running = child.poll() is None
        child.kill()
        child.wait()
        assert is_running

    def test_one_process_of_several_is_not_interrupted(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
        with asked_to_stop() as request, request.interruptible():
            os.kill(os.getpid(), signal.SIGINT)
            assert request.is_made()

    def test_under_torchrun_the_same_signal_again_is_no_second_request(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
        with asked_to_stop() as request:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            assert request.is_made()
        assert type(request.exception()) is KeyboardInterrupt

    def test_signal_handlers_are_restored(self) -> None:
        with asked_to_stop():
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_an_ignored_signal_stays_ignored(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with asked_to_stop() as request:
            os.kill(os.getpid(), signal.SIGINT)
            assert not request.is_made()
