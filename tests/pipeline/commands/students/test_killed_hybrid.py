"""Both trainings of a hybrid student, killed with SIGKILL, by the command line.

The moments are calls that change what is on the disk, and not times: a slow machine is killed in
the same places as a fast one. Whatever was there then, the same command with --resume ends with the
weights and metrics of a run that nothing disturbed, bit for bit.
"""

import random
import signal
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch

from tests.support.command_line import done
from tests.support.hybrid_runs import hybrid_cache
from tests.support.killed_writers import kill_at
from tests.support.train_runs import metrics, weights

_NEVER = -1
_SIZES = {
    **{"batch_size": 2, "max_steps": 6, "eval_steps": 3, "save_steps": 2, "save_total_limit": 1},
    **{"validation_rows": 4, "logging_steps": 1, "loss_chunk": 40, "compile": "off"},
    **{"student.window": 6, "student.lora_rank": 2, "report_to": "[]"},
}
_TRAININGS = {
    "align": ("demo-hybrid-align", "new"),
    "distill": ("demo-hybrid-distill", "all"),
    "adapters": ("demo-hybrid-distill", "lora"),
}
"""Recipe, and what it trains."""


def arguments(training: str, root: Path, out: Path) -> list[str]:
    """The command line; each distillation begins with the alignment at ``root/align``."""
    recipe, trained = _TRAININGS[training]
    words = ["train-student", "--recipe", recipe, "--cache", str(root / "cache")]
    words += ["--out", str(out), "--resume"]
    if training != "align":
        words += ["--init", str(root / "align")]
    for key, value in {**_SIZES, "student.trained": trained}.items():
        words += ["--set", f"train_student.{key}={value}"]
    return words


def run_command(words: Sequence[str], moment: int, calls: Path | None) -> None:
    """What a killed process was doing. Runs in a process of its own.

    Where nothing kills it, the number of calls that might have goes to ``calls``.
    """
    torch.set_num_threads(1)
    num_calls = kill_at(moment)
    done(*words)
    if calls is not None:
        calls.write_text(str(num_calls()))


class Trainings:
    """Runs over one cache, in processes of their own."""

    def __init__(self, server: ForkServerContext, root: Path) -> None:
        self._server, self.root = server, root

    def run(self, training: str, out: Path, moment: int, calls: Path | None = None) -> int:
        """The exit code of one command."""
        words = arguments(training, self.root, out)
        process = self._server.Process(target=run_command, args=(words, moment, calls))
        process.start()
        process.join()
        assert process.exitcode is not None
        return process.exitcode

    def undisturbed(self, training: str) -> tuple[Path, int]:
        """The run that nothing kills, which is made once, and its number of moments."""
        out, calls = self.root / training, self.root / f"{training}.calls"
        if not calls.exists():
            assert self.run(training, out, _NEVER, calls) == 0
        return out, 2 * int(calls.read_text())


@pytest.fixture(scope="module")
def trainings(
    fork_server: ForkServerContext, tmp_path_factory: pytest.TempPathFactory
) -> Trainings:
    root = tmp_path_factory.mktemp("killed")
    hybrid_cache(root)
    found = Trainings(fork_server, root)
    found.undisturbed("align")
    return found


@pytest.mark.parametrize(
    "num_rounds", [1, pytest.param(12, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
@pytest.mark.parametrize("training", _TRAININGS)
def test_a_training_killed_anywhere_ends_with_the_same_bytes(
    trainings: Trainings, tmp_path: Path, training: str, num_rounds: int
) -> None:
    """In every round three processes are killed one after the other, and a fourth is not."""
    whole, num_moments = trainings.undisturbed(training)
    rng = random.Random(training)
    num_kills = num_resumed = 0
    for number in range(num_rounds):
        out = tmp_path / str(number)
        # A run that goes on has fewer such calls left than the whole has.
        for part in (3, 2, 1):
            moment = rng.randrange(num_moments // (part + 1), num_moments // part)
            exit_code = trainings.run(training, out, moment)
            assert exit_code in (0, -signal.SIGKILL)
            num_kills += exit_code != 0
            num_resumed += any(out.glob("checkpoints/step-*")) and not (out / "model").exists()
        assert trainings.run(training, out, _NEVER) == 0
        assert metrics(out) == metrics(whole)
        expected = weights(whole)
        found = weights(out)
        assert found.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
        one, other = (run / "model/config.json" for run in (out, whole))
        assert one.read_bytes() == other.read_bytes()
    # Not vacuous: runs were killed, and others went on from their checkpoints.
    assert num_kills > num_rounds
    assert num_resumed > 0
    print(f"{num_kills} kills in {num_rounds} rounds, {num_resumed} with checkpoints to resume")
