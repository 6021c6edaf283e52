"""Several processes, as torchrun starts them: the same student as one process trains."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import TCPStore  # type: ignore[attr-defined]

import cache_format
from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.mixture import mix
from stages.train_student.run import train_student
from stages.train_student.tracking.run_progress import TrainProgress
from stages.train_student.trainer.rank_slice import require_processes
from stages.train_student.trainer.stopping import StoppedError
from tests.support import ROOT, tiny
from tests.support.hybrid_runs import (
    align_config,
    distill_config,
    hybrid_cache,
    lora_config,
    save_tiny_llama,
)
from tests.support.train_configs import tiny_train_config
from tests.support.train_in_processes import train_forked
from tests.support.train_runs import metrics, run

_SCRIPT = ROOT / "tests/support/train_in_processes.py"


class Ended(NamedTuple):
    """How a run's processes ended; ``returncode`` is 0 where all of them did well."""

    returncode: int
    stderr: str


class Launcher:
    """Starts processes as torchrun does, from a server that has imported everything already."""

    def __init__(self, server: ForkServerContext, directory: Path) -> None:
        self._server, self._errors = server, directory / "stderr"

    def train(
        self,
        cache: Path,
        out: Path,
        *,
        stop_after: int | None = None,
        fail_after: int | None = None,
        **changes: Any,
    ) -> Ended:
        """Train the tiny student, or that of ``kind``, by two processes.

        Each is told to stop after ``stop_after`` steps; the second fails after ``fail_after``.
        """
        given = json.dumps({"changes": changes, "stop_after": stop_after, "fail_after": fail_after})
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        environment = {
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2"},
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
        arguments = (environment, self._errors, str(cache), str(out), given)
        self._errors.unlink(missing_ok=True)
        processes = [
            self._server.Process(target=train_forked, args=(rank, *arguments)) for rank in range(2)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        ends = [process.exitcode or 0 for process in processes]
        return Ended(next(filter(None, ends), 0), self._errors.read_text())


@pytest.fixture
def two_processes(fork_server: ForkServerContext, tmp_path: Path) -> Launcher:
    """Two processes."""
    return Launcher(fork_server, tmp_path)


def train_by_torchrun(cache: Path, out: Path, **changes: Any) -> Ended:
    """Train the tiny student by two processes that torchrun starts."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    given = json.dumps({"changes": changes, "stop_after": None, "fail_after": None})
    done = subprocess.run(
        [sys.executable, *launcher, str(_SCRIPT), str(cache), str(out), given],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    return Ended(done.returncode, done.stderr)


def losses(out: Path) -> list[float]:
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [row["train/loss"] for row in rows if "train/loss" in row]


def assert_same_student(found: Path, expected: Path, tolerance: float) -> None:
    """Losses to rounding. AdamW divides by the gradient's size, so that where it is next to nothing
    rounding shows: weights are equal on the whole, not each."""
    assert losses(found) == pytest.approx(losses(expected), rel=tolerance)
    ours, theirs = (load_file(out / "model" / "model.safetensors") for out in (found, expected))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        distance = torch.linalg.vector_norm(ours[name].double() - tensor.double())
        assert distance <= tolerance * torch.linalg.vector_norm(tensor.double()), name


SIZES = {
    "batch_size": 1,
    "gradient_accumulation_steps": 4,
}  # two micro-batches for each of two processes


@pytest.fixture(scope="module")
def single_process_run(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, with dropout."""
    out = tmp_path_factory.mktemp("alone") / "run"
    run(tiny_train_config(**SIZES), tiny_cache, out)
    return out


def test_two_processes_train_the_same_student_as_one(
    two_processes: Launcher, single_process_run: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    done = two_processes.train(tiny_cache, tmp_path / "run", parallel="fsdp", **SIZES)
    assert done.returncode == 0, done.stderr
    assert_same_student(tmp_path / "run", single_process_run, 2e-5)


def test_two_processes_train_the_same_student_from_several_caches(
    two_processes: Launcher, tiny_cache: Path, tmp_path: Path
) -> None:
    other = tiny.cache_texts(tiny_cache.parent / "teacher", tmp_path / "math", tiny.tiny_texts(40))
    caches = mix([cache_format.open(tiny_cache), cache_format.open(other)], [0.4, 0.6])
    train_student(tiny_train_config(**SIZES), caches, tmp_path / "alone", recipe_toml="# tiny\n")
    done = two_processes.train(tiny_cache, tmp_path / "run", mixed_with=str(other), **SIZES)
    assert done.returncode == 0, done.stderr
    assert_same_student(tmp_path / "run", tmp_path / "alone", 2e-5)


def test_two_torchrun_processes_train_the_same_student_as_one(
    single_process_run: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    done = train_by_torchrun(tiny_cache, tmp_path / "run", parallel="ddp", **SIZES)
    assert done.returncode == 0, done.stderr
    assert_same_student(tmp_path / "run", single_process_run, 2e-5)


def test_processes_may_have_unequal_numbers_of_micro_batches(
    two_processes: Launcher, tiny_cache: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"batch_size": 1, "gradient_accumulation_steps": 3, "max_steps": 3}
    run(tiny_train_config(**changes), tiny_cache, tmp_path / "alone")
    done = two_processes.train(tiny_cache, tmp_path / "run", **changes)
    assert done.returncode == 0, done.stderr
    assert_same_student(tmp_path / "run", tmp_path / "alone", 2e-5)


def test_a_trained_head_and_scaled_gradients_are_synchronized(
    two_processes: Launcher, tiny_cache: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"train_head": True, "precision": "fp16", "max_steps": 3}
    run(tiny_train_config(**changes), tiny_cache, tmp_path / "alone")
    done = two_processes.train(tiny_cache, tmp_path / "run", parallel="fsdp", **changes)
    assert done.returncode == 0, done.stderr
    # Halves are rounded, so some of what AdamW divides by is another number altogether.
    assert_same_student(tmp_path / "run", tmp_path / "alone", 2e-2)


@pytest.fixture(scope="module")
def teacher_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with two of its teacher's layers, and all of its weights, in half precision."""
    root = tmp_path_factory.mktemp("hybrid")
    save_tiny_llama(root / "teacher", dtype=torch.bfloat16)
    return hybrid_cache(root, hidden_states="each:1,2", hidden_projection="rademacher")


@pytest.mark.parametrize(
    ("kind", "make_config", "parallel"),
    [
        ("align", align_config, "ddp"),
        ("align", align_config, "fsdp"),
        ("distill", distill_config, "fsdp"),
        ("lora", lora_config, "ddp"),
        ("lora", lora_config, "fsdp"),
    ],
)
def test_a_student_that_holds_its_teacher_is_shared(
    two_processes: Launcher,
    teacher_cache: Path,
    tmp_path: Path,
    kind: str,
    make_config: Callable[..., TrainStudentConfig],
    parallel: str,
) -> None:
    changes: dict[str, Any] = {"max_steps": 3, "eval_steps": 9}
    run(make_config(**changes), teacher_cache, tmp_path / "alone")
    done = two_processes.train(
        teacher_cache, tmp_path / "run", kind=kind, parallel=parallel, **changes
    )
    assert done.returncode == 0, done.stderr
    assert_same_student(tmp_path / "run", tmp_path / "alone", 2e-5)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_single_layers_are_compared_by_several_processes(
    two_processes: Launcher, teacher_cache: Path, tmp_path: Path, parallel: str
) -> None:
    """The last layer is in no term of the loss. All weights are trained, so that all are float32:
    in a residual stream of bfloat16, the order in which gradients are added shows."""
    changes: dict[str, Any] = {
        **{"alpha_start": 0.0, "alpha_end": 0.0, "layer_mse_weight": 1.0, "trained": "all"},
        **{"gradient_checkpointing": True, "max_steps": 3, "eval_steps": 9},
    }
    run(distill_config(**changes), teacher_cache, tmp_path / "alone")
    done = two_processes.train(
        teacher_cache, tmp_path / "run", kind="distill", parallel=parallel, **changes
    )
    assert done.returncode == 0, done.stderr
    # What decides on forgetting over so few positions has next to no gradient.
    assert_same_student(tmp_path / "run", tmp_path / "alone", 2e-4)


def test_sampled_softmax_columns_do_not_depend_on_the_process(
    two_processes: Launcher, tiny_cache: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"sampled_softmax_size": 32, "max_steps": 3}
    run(tiny_train_config(**changes), tiny_cache, tmp_path / "alone")
    done = two_processes.train(tiny_cache, tmp_path / "run", **changes)
    assert done.returncode == 0, done.stderr
    assert_same_student(tmp_path / "run", tmp_path / "alone", 2e-5)


def test_checkpoints_resume_on_another_number_of_processes(
    two_processes: Launcher, single_process_run: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    """Two with all weights, stopped mid-epoch; then one; then two with their weights spread."""
    out = tmp_path / "run"
    stopped = two_processes.train(tiny_cache, out, parallel="ddp", stop_after=2, **SIZES)
    assert "StoppedError: stopped after step 2" in stopped.stderr, stopped.stderr
    last = 0

    def report(progress: TrainProgress) -> None:
        nonlocal last
        last = progress.step

    with pytest.raises(StoppedError):
        run(
            tiny_train_config(**SIZES),
            tiny_cache,
            out,
            resume=True,
            report=report,
            stop=lambda: last == 5,
        )
    done = two_processes.train(tiny_cache, out, parallel="fsdp", **SIZES)
    assert done.returncode == 0, done.stderr
    assert_same_student(out, single_process_run, 2e-5)


def test_all_processes_stop_within_the_validation_after_a_resume(
    two_processes: Launcher, single_process_run: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    stopped = two_processes.train(tiny_cache, out, parallel="fsdp", stop_after=4, **SIZES)
    assert "StoppedError: stopped after step 4" in stopped.stderr, stopped.stderr
    validated = [row["step"] for row in metrics(out) if "validation/loss" in row]
    assert validated == [0]
    run(tiny_train_config(**SIZES), tiny_cache, out, resume=True)
    assert_same_student(out, single_process_run, 2e-5)
    assert [row["step"] for row in metrics(out)] == [
        row["step"] for row in metrics(single_process_run)
    ]


def test_a_refusal_by_the_first_process_ends_all(
    two_processes: Launcher, single_process_run: Path, tiny_cache: Path
) -> None:
    done = two_processes.train(tiny_cache, single_process_run, learning_rate=0.1, **SIZES)
    assert done.returncode != 0
    assert "learning_rate was 0.003 and is 0.1" in done.stderr, done.stderr
    assert "OtherProcessFailedError" in done.stderr, done.stderr


def test_one_failing_process_ends_all_at_once(
    two_processes: Launcher, tiny_cache: Path, tmp_path: Path
) -> None:
    """The first process does not wait for the second, and what was saved can be gone on with."""
    done = two_processes.train(tiny_cache, tmp_path / "run", fail_after=4, **SIZES)
    assert done.returncode != 0
    assert "ValueError: the second process cannot go on" in done.stderr, done.stderr
    assert "OtherProcessFailedError: another process of the run has ended" in done.stderr, (
        done.stderr
    )
    saved = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert saved == ["step-0000003"]


@pytest.mark.parametrize(
    ("sizes", "num_ranks", "parallel", "advice"),
    [
        ((8, 4), 8, "ddp", "batch_size=4 with train_student.gradient_accumulation_steps=8"),
        ((8, 4), 3, "fsdp", "batch_size=10 with train_student.gradient_accumulation_steps=3"),
        ((2, 1), 4, "ddp", "batch_size=1 with train_student.gradient_accumulation_steps=4"),
    ],
)
def test_a_step_that_cannot_be_divided_among_processes_is_refused(
    sizes: tuple[int, int], num_ranks: int, parallel: str, advice: str
) -> None:
    changes = {
        "batch_size": sizes[0],
        "gradient_accumulation_steps": sizes[1],
        "parallel": parallel,
    }
    with pytest.raises(ValueError, match=r"micro-batches.* processes") as refused:
        require_processes(tiny_train_config(**changes), num_ranks)
    assert advice in str(refused.value)


@pytest.mark.parametrize(("num_ranks", "parallel"), [(1, "fsdp"), (3, "ddp"), (4, "fsdp")])
def test_a_step_that_can_be_divided_among_processes_is_accepted(
    num_ranks: int, parallel: str
) -> None:
    require_processes(
        tiny_train_config(gradient_accumulation_steps=4, parallel=parallel), num_ranks
    )
