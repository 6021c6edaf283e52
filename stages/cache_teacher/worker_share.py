"""One of several processes that share a cache without talking to each other: ``r/R``.

In: the option's text, and what torchrun or Slurm put into the environment. Out: which units are
this worker's, and which GPU.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count

_LOCAL_INDEX = ("LOCAL_RANK", "SLURM_LOCALID")


@dataclass(frozen=True, kw_only=True)
class WorkerShare:
    """Units u with u mod ``num_workers`` = ``worker``."""

    worker: int
    num_workers: int

    def __post_init__(self) -> None:
        if not 0 <= self.worker < self.num_workers:
            raise ValueError(
                f"worker {self.worker} of {self.num_workers}: workers count from 0 to "
                f"{self.num_workers - 1}"
            )

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str]) -> "WorkerShare":
        """``r/R``, or ``auto`` for what ``environment`` says. Raises ValueError."""
        if text == "auto":
            return _from_environment(environment)
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if match is None:
            raise ValueError(f"{text!r}: expected r/R, such as 0/8 for the first of 8, or auto")
        return cls(worker=int(match[1]), num_workers=int(match[2]))

    def __str__(self) -> str:
        return f"{self.worker}/{self.num_workers}"

    def numbers(self) -> Iterable[int]:
        """The units, rising."""
        return count(self.worker, self.num_workers)


def device_of_worker(
    device: str, worker: int, num_gpus: int, environment: Mapping[str, str]
) -> str:
    """The device that ``auto`` stands for: each worker of a machine has a GPU of its own.

    Where nothing says which of the machine's workers this is, they are taken to be consecutive.
    Where the machine shows every worker its own GPU alone, that is the one.
    """
    if device != "auto" or num_gpus == 0:
        return device
    index = next((environment[name] for name in _LOCAL_INDEX if name in environment), str(worker))
    return f"cuda:{_number('the index of this worker on its machine', index) % num_gpus}"


def _from_environment(environment: Mapping[str, str]) -> WorkerShare:
    worker, num_workers = "RANK", "WORLD_SIZE"
    if worker in environment and num_workers in environment:
        return WorkerShare(
            worker=_number(worker, environment[worker]),
            num_workers=_number(num_workers, environment[num_workers]),
        )
    has_array = "SLURM_ARRAY_TASK_ID" in environment
    if not has_array and "SLURM_PROCID" not in environment:
        raise ValueError(
            "auto: the environment has neither RANK and WORLD_SIZE (torchrun), nor SLURM_PROCID "
            "and SLURM_NTASKS (srun), nor SLURM_ARRAY_TASK_ID (sbatch --array). Give the worker as "
            "r/R, such as 0/8."
        )

    def number(name: str, default: int) -> int:
        text = environment.get(f"SLURM_{name}")
        return default if text is None else _number(f"SLURM_{name}", text)

    # In a job array Slurm tells both which job and, within it, which process.
    job = number("ARRAY_TASK_ID", 0) - number("ARRAY_TASK_MIN", 0)
    num_jobs = number("ARRAY_TASK_COUNT", 1)
    num_tasks = number("NTASKS", 1)
    return WorkerShare(
        worker=job // number("ARRAY_TASK_STEP", 1) * num_tasks + number("PROCID", 0),
        num_workers=num_jobs * num_tasks,
    )


def _number(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"auto: {name} is {text!r}, not a number")
    return int(text)
