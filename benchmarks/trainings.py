"""Students in training: from the cache, with the teacher in the loop, on labels alone.

In: an open cache and stage two's settings. Out: ``Training``s of one recipe that see the same rows
in the same order. Everything but the loop itself is what ``train-student`` runs: loader, objective,
optimizer.
"""

import time
from dataclasses import replace
from functools import partial
from typing import Literal, get_args

import torch

from cache_format.reader import Cache
from pipeline.students.online_teacher import load_online_teacher
from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.loader import Loader, row_order
from stages.train_student.data.sampler import micro_batch_seed
from stages.train_student.distributed.context import DistributedContext
from stages.train_student.losses.loss_term import LossNormalizer
from stages.train_student.losses.objective import make_objective
from stages.train_student.losses.schedules import learning_rates
from stages.train_student.losses.terms import cache_needs, loss_weights
from stages.train_student.new_student import load_student
from stages.train_student.students.student import Student
from stages.train_student.trainer.optimizer_step import Updater
from stages.train_student.trainer.rank_slice import ParallelLoss

Way = Literal["cache", "online", "labels"]
"""What a student learns from: the cache's targets, a teacher in the loop, or labels alone."""
WAYS: tuple[Way, ...] = get_args(Way)


class Training:
    """A student in training."""

    def __init__(
        self,
        way: Way,
        cache: Cache,
        config: TrainStudentConfig,
        device: torch.device,
        model: Student | None = None,
    ) -> None:
        """Without ``model``, a new student is made."""
        if way == "labels":
            config = replace(config, alpha_start=0.0, alpha_end=0.0, beta_start=0.0, beta_end=0.0)
        self.way, self.cache, self.config, self.device = way, cache, config, device
        self.model = model or load_student(config, cache).to(device)
        teacher = None
        if way == "online":
            with_mean = bool(cache_needs(config).hidden_states_for)
            teacher = load_online_teacher(cache, device, with_mean=with_mean)
        self.objective = make_objective(self.model, cache, config, device, teacher)
        context = DistributedContext()
        loss = ParallelLoss(self.model, self.objective, None, context)
        self._updater = Updater(self.model, loss, config, context)
        self.order = row_order(cache, config, cache.num_rows("train"))
        self.num_steps = config.max_steps or self.order.steps_per_epoch * config.num_train_epochs
        self.step = 0

    @property
    def tokens_per_step(self) -> int:
        """Positions of a step."""
        return self.order.rows_per_step * self.cache.spec.sequence_length

    def run(self, num_steps: int) -> float:
        """Seconds that ``num_steps`` more steps take, the loader's start included."""
        self.model.train()
        begin = time.perf_counter()
        with self._loader() as loader:
            for step in loader.steps(self.step, self.step + num_steps):
                weights = loss_weights(self.config, self.step, self.order.steps_per_epoch)
                rates = learning_rates(self.config, self.step, self.num_steps)
                num_scored = sum(batch.num_scored for batch in step)
                normalizer = LossNormalizer(num_scored, self.order.rows_per_step)
                seed = partial(micro_batch_seed, self.config.seed, self.step)
                seeds = map(seed, range(self.config.gradient_accumulation_steps))
                sums = self._updater.accumulate(step, weights, normalizer, seeds)
                self._updater.update(sums, rates)  # waits for the device
                self.step += 1
        return time.perf_counter() - begin

    def read(self, num_steps: int) -> float:
        """Seconds that the loader takes for the rows of ``num_steps`` steps, nothing made of them.

        Reads what the next ``run`` would.
        """
        begin = time.perf_counter()
        with self._loader() as loader:
            for _ in loader.steps(self.step, self.step + num_steps):
                pass
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        return time.perf_counter() - begin

    def _loader(self) -> Loader:
        return Loader(
            self.cache,
            self.order,
            self.device,
            num_threads=self.config.reader_threads,
            with_sketch=self.objective.signal.reads_hidden_states
            and cache_needs(self.config).reads_sketch,
        )
