"""DDP and FSDP2 over NCCL, in a group of one process: the same step as without either."""

from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]

import cache_format
from stages.train_student.data.batch import read_batch
from stages.train_student.data.loader import copied_ahead
from stages.train_student.distributed.context import DistributedContext
from stages.train_student.distributed.sharding import whole
from stages.train_student.losses.loss_term import LossNormalizer
from stages.train_student.losses.objective import make_objective
from stages.train_student.losses.schedules import LearningRates
from stages.train_student.losses.terms import LossWeights
from stages.train_student.new_student import load_student
from stages.train_student.students.registry import student_kind
from stages.train_student.trainer.optimizer_step import Updater
from stages.train_student.trainer.rank_slice import ParallelLoss
from tests.support.train_configs import tiny_train_config

pytestmark = pytest.mark.gpu
WEIGHTS = LossWeights(0.5, 0.1, 1.3)


@pytest.fixture
def group(device: torch.device) -> Iterator[None]:
    """As ``distributed_context`` makes one, but that a process may be alone in it."""
    is_gpu = device.type == "cuda"
    if is_gpu:
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if is_gpu else "gloo"
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def steps(
    parallel: str | None, precision: str, cache_path: Path, device: torch.device
) -> tuple[list[float], list[torch.Tensor]]:
    """Losses of three steps, and the trained weights after them."""
    cache = cache_format.open(cache_path)
    config = tiny_train_config(dropout=0.0, precision=precision, device=str(device))
    model = load_student(config, cache).to(device)
    objective = make_objective(model, cache, config, device)
    kind = student_kind(config.student.kind)
    sharding = kind.sharding(model) if parallel == "fsdp" else None
    # What spreads or replicates weights is left out for one process. It is told of two.
    context = DistributedContext(num_ranks=1 if parallel is None else 2)
    loss = ParallelLoss(model, objective, sharding, context)
    loss._num_ranks = 1
    updater = Updater(model, loss, config, DistributedContext())
    model.train()
    found = []
    for number in range(3):
        read = [
            read_batch(cache, "train", range(first, first + 2), with_sketch=True)
            for first in (4 * number, 4 * number + 2)
        ]
        (step,) = copied_ahead([tuple(read)], device)
        normalizer = LossNormalizer(sum(batch.num_scored for batch in step), 4)
        sums = updater.accumulate(step, WEIGHTS, normalizer, repeat(0, len(step)))
        found.append(updater.update(sums, LearningRates(3e-3, 3e-3))["loss"])
    trained = [whole(p.detach()).cpu() for p in model.parameters() if p.requires_grad]
    return found, trained


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_group_of_one_takes_the_same_steps(
    device: torch.device, tiny_cache: Path, parallel: str, precision: str
) -> None:
    expected_losses, expected = steps(None, precision, tiny_cache, device)
    found_losses, found = steps(parallel, precision, tiny_cache, device)
    bound = 1e-4 if precision == "fp32" else 2e-2
    assert found_losses == pytest.approx(expected_losses, rel=bound)
    assert expected_losses[2] < expected_losses[0]
    for ours, theirs in zip(found, expected, strict=True):
        difference = torch.linalg.vector_norm(ours - theirs)
        assert difference <= bound * torch.linalg.vector_norm(theirs)
