"""One process of several that train a tiny student. See ``test_processes``."""

import json
import os
import sys
from pathlib import Path

import cache_format
from stages.train_student.data.mixture import mix
from stages.train_student.run import train_student
from stages.train_student.tracking.run_progress import TrainProgress
from stages.train_student.trainer.stopping import StopRequest
from tests.support.hybrid_runs import align_config, distill_config, lora_config
from tests.support.train_configs import tiny_train_config

_CONFIGS = {
    **{"tiny": tiny_train_config, "align": align_config},
    **{"distill": distill_config, "lora": lora_config},
}
"""By what the settings call ``kind``."""


def main(cache: str, out: str, arguments: str) -> None:
    given = json.loads(arguments)
    last = 0

    def report(progress: TrainProgress) -> None:
        nonlocal last
        last = progress.step

    def stop() -> bool:
        is_second = os.environ["RANK"] == "1"
        if last == given["fail_after"] and is_second:
            raise ValueError("the second process cannot go on")
        return bool(last == given["stop_after"]) and is_second

    opened, other = cache_format.open(cache), given["changes"].pop("mixed_with", None)
    make_config = _CONFIGS[given["changes"].pop("kind", "tiny")]
    train_student(
        make_config(**given["changes"]),
        opened if other is None else mix([opened, cache_format.open(other)], [0.4, 0.6]),
        Path(out),
        resume=True,
        recipe_toml="# tiny\n",
        report=report,
        stop=StopRequest(is_made=stop),
    )


def train_forked(rank: int, environment: dict[str, str], errors: Path, *arguments: str) -> None:
    """``main`` in the environment that torchrun makes, its standard error in a file."""
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
    main(*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
