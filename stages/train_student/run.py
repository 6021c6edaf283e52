"""Stage two, from top to bottom in the order the data flows.

cache → loader → student → loss → optimizer → checkpoint → Hugging Face model directory. The teacher
is never loaded: what a student needs of it (embedding, head, tokenizer) lies inside the cache.

``out/`` receives ``recipe.toml``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/`` and, at the
end, ``model/``. Of several processes the first one writes.
"""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from cache_format.reader import Cache
from stages.train_student import evaluate
from stages.train_student.batches.loader import Loader, Step, row_order
from stages.train_student.batches.row_order import Part, micro_batch_seed
from stages.train_student.config import TrainStudentConfig
from stages.train_student.objective.objective import Share, make_objective
from stages.train_student.objective.online import LoadTeacher, OnlineTeacher
from stages.train_student.objective.schedule import learning_rate, loss_weights
from stages.train_student.requirements import require_targets
from stages.train_student.student.slstm_choice import choose_scan
from stages.train_student.training import checkpoint, run_directory
from stages.train_student.training.checkpoint import Checkpoint
from stages.train_student.training.export import publish_model
from stages.train_student.training.metrics import MetricsLog
from stages.train_student.training.new_student import load_student
from stages.train_student.training.parallel import ParallelLoss, require_processes
from stages.train_student.training.precision import choose_precision
from stages.train_student.training.processes import Processes, joined
from stages.train_student.training.progress import Event, Report, TrainProgress
from stages.train_student.training.run_directory import RunRows
from stages.train_student.training.saved_tensors import (
    restore,
    tensors_of,
    trained_parameters,
    whole_tensors,
)
from stages.train_student.training.sharding import copy_whole
from stages.train_student.training.stopping import StopNow, StoppedError, Stopping, StopRequest
from stages.train_student.training.throughput import Throughput, operations_per_token
from stages.train_student.training.trackers import require_trackers
from stages.train_student.training.update import NonFiniteError, Updater


class NonFiniteLossError(ValueError):
    """The loss or its gradient is NaN or infinite."""


def train_student(
    config: TrainStudentConfig,
    cache: Cache,
    out: Path,
    *,
    resume: bool,
    recipe_toml: str,
    report: Report,
    stop: StopRequest | None = None,
    load_teacher: LoadTeacher | None = None,
) -> dict[str, float]:
    """Train a student from ``cache``; returns its last validation's metrics.

    With ``load_teacher`` the loss asks that teacher instead, over the same rows: for comparison.
    Started by torchrun, all processes train one student.

    Once ``stop`` is made anywhere, a checkpoint of the last finished step is written and
    StoppedError raised; where that is a validation's, the resumed run begins with it. A process
    that is alone abandons what it is at; several agree on it between steps, and between batches of
    validation. Before there is a run to go on with, StopNow is raised.

    Raises ValueError where recipe, cache and ``out`` do not fit together, CacheError for a cache
    that is corrupt or still being written, and NonFiniteLossError when the loss diverges.
    """
    require_targets(config, cache, online=load_teacher is not None)
    require_trackers(config.trackers)
    with joined(config.device) as (team, device):
        require_processes(config, team.num_ranks)
        choice = team.first(lambda: choose_precision(config.precision, out, device))
        config = dataclasses.replace(config, precision=choice.precision)
        stopping = Stopping(stop or StopRequest(), team)
        with ExitStack() as stack:
            team.first(lambda: stack.enter_context(run_directory.held(out)))
            prepare = partial(run_directory.prepare, out, cache, config)
            prepare = partial(prepare, resume=resume, recipe_toml=recipe_toml)
            rows = team.first(partial(prepare, online=load_teacher is not None))
            with stopping.interruptible():
                teacher = load_teacher(device) if load_teacher else None
                run = _Run(config, cache, rows, team, device, out, report, teacher)
            return run.train(stopping, choice.sentence)


class _Run:
    """The state of one training run: student, optimizer, scaler and step."""

    def __init__(
        self,
        config: TrainStudentConfig,
        cache: Cache,
        rows: RunRows,
        team: Processes,
        device: torch.device,
        out: Path,
        report: Report,
        teacher: OnlineTeacher | None,
    ) -> None:
        self.config, self.cache, self.rows, self.out = config, cache, rows, out
        self.team, self.device, self._report = team, device, report
        self.order = row_order(cache, config, rows.train)
        self.steps_per_epoch = self.order.steps_per_epoch
        self.num_steps = config.max_steps or self.steps_per_epoch * config.num_epochs
        self.uses_sketch = max(config.beta_start, config.beta_end) > 0 and teacher is None
        self.model = load_student(config, cache).to(device)  # type: ignore[arg-type]
        self.throughput = Throughput(
            operations_per_token(self.model), device, config.precision, team.num_ranks
        )
        self.objective = make_objective(self.model, cache, config, device, teacher)
        self.loss = ParallelLoss(self.model, self.objective, config.parallel, team)
        self.updater = Updater(self.model, self.loss, config, team)
        self.step = 0
        self.validation: dict[str, float] = {}
        self._validation_is_due = True
        self._stopping = Stopping(StopRequest(), team)
        self._log: MetricsLog | None = None

    def train(self, stopping: Stopping, sentence: str) -> dict[str, float]:
        """Tell ``sentence``, resume if there is a checkpoint, train to the last step, publish."""
        self._stopping = stopping
        if sentence:
            self._tell("message", message=sentence)
        with stopping.interruptible():
            self._choose_scan()
            self._restore()
        self.model.train()
        with ExitStack() as stack:
            if self.team.is_first:
                self._log = stack.enter_context(self._open_log())
            loader = stack.enter_context(self._loader())
            try:
                self._train(loader)
            except StopNow:
                self._save()
                raise StoppedError(self.step) from None
        return self.validation

    def _train(self, loader: Loader) -> None:
        """From the step that the run is at. StopNow leaves it at one."""
        if self._validation_is_due:
            self._validate()
        self.throughput.restart()
        steps = loader.steps(self.step, self.num_steps)
        while (step := self._next(steps)) is not None:
            self.throughput.loaded()
            own_scored = sum(batch.num_scored for batch in step)
            num_scored, num_stopping = self.team.sum([own_scored, self._stopping.is_asked])
            if num_stopping:
                raise StopNow
            self._after_step(self._optimize(step, int(num_scored)))
        with self._stopping.interruptible():
            self._publish()

    def _next(self, steps: Iterator[Step]) -> Step | None:
        with self._stopping.interruptible():  # a cache at a URL may be slow
            return next(steps, None)

    def _choose_scan(self) -> None:
        """Who computes the sLSTM's recurrence; the student asks for it by the device."""
        if self.config.slstm_at:
            heads = self.config.num_heads
            width = self.model.config.hidden_size // heads
            choice = choose_scan(self.config.slstm, self.device, heads, width)
            self._tell("message", message=choice.sentence)

    def _open_log(self) -> MetricsLog:
        settings = dataclasses.asdict(self.config) | {"cache_id": self.cache.cache_id}
        return MetricsLog(
            self.out,
            from_step=self.step,
            validates_first=self._validation_is_due,
            trackers=self.config.trackers,
            config=settings,
        )

    def _loader(self) -> Loader:
        return Loader(
            self.cache,
            self.order,
            self.device,
            Part(self.team.rank, self.team.num_ranks),
            num_threads=self.config.reader_threads,
            with_sketch=self.uses_sketch,
        )

    def _optimize(self, step: Step, num_scored: int) -> dict[str, float]:
        """One optimizer step; returns its metrics."""
        weights = loss_weights(self.config, self.step, self.steps_per_epoch)
        rate = learning_rate(self.config, self.step, self.num_steps)
        share = Share(max(1, num_scored), self.order.rows_per_step)
        numbers = Part(self.team.rank, self.team.num_ranks).micro_batches(self.config.accumulation)
        seeds = (micro_batch_seed(self.config.seed, self.step, number) for number in numbers)
        try:
            with self._stopping.interruptible():
                check = self._stopping.check_alone
                sums = self.updater.accumulate(step, weights, share, seeds, check)
            figures = self.updater.update(sums, rate)
        except NonFiniteError as error:
            raise self._diverged(f"{error.name} of step {self.step}", error.value) from error
        tokens = self.order.rows_per_step * self.cache.spec.sequence_length
        return {
            **{f"train/{name}": value for name, value in dataclasses.asdict(figures).items()},
            "schedule/alpha": weights.alpha,
            "schedule/beta": weights.beta,
            "schedule/temperature": weights.temperature,
            "schedule/learning_rate": rate,
            **self.throughput.figures(tokens),
        }

    def _after_step(self, metrics: dict[str, float]) -> None:
        self.step += 1
        is_last = self.step == self.num_steps
        if is_last or self.step == 1 or self.step % self.config.log_every == 0:
            self._write(metrics)
        self._tell("step", metrics)
        validates = is_last or self.step % self.config.validate_every == 0
        self._validation_is_due = validates
        saves = is_last or self.step % self.config.checkpoint_every == 0
        if validates:
            self._validate()
        if saves:
            self._save()
        if validates or saves:
            self.throughput.restart()

    def _validate(self) -> None:
        """Every process computes the same, so that none has to wait for another's figures."""
        batches = evaluate.validation_batches(
            self.cache, self.rows.validation, self.config.validation_rows, self.config.batch_size
        )
        try:
            with self._stopping.interruptible():
                found = evaluate.score(self.model, self.objective, self._stopping.checked(batches))
        finally:
            self.loss.release()
        self.validation, self._validation_is_due = found, False
        loss = self.validation["validation/loss"]
        if not math.isfinite(loss):
            raise self._diverged(f"validation loss of step {self.step}", loss)
        self._write(self.validation)
        self._tell("validation", self.validation)

    def _save(self) -> None:
        tensors = tensors_of(self.model, self.updater.optimizer, keep=self.team.is_first)
        state = {
            "cache_id": self.cache.cache_id,
            "config": dataclasses.asdict(self.config),
            "scaler": self.updater.scaler.state_dict(),
            "validation": self.validation,
            "validation_is_due": self._validation_is_due,
        }
        directory, keep = self.out / "checkpoints", self.config.keep_checkpoints
        path = self.team.first(lambda: checkpoint.save(directory, self.step, tensors, state, keep))
        self._tell("checkpoint", message=f"checkpoint {path}")

    def _restore(self) -> None:
        """Go on from the newest checkpoint, which the first process chooses for all."""
        found: Checkpoint | None = None

        def choose() -> tuple[Path, str] | None:
            nonlocal found
            found, problems = checkpoint.load_newest(self.out / "checkpoints")
            for problem in problems:
                self._tell("message", message=problem)
            if problems and found is None:
                self._tell("message", message="no checkpoint is whole: training begins anew")
            return None if found is None else (found.path, found.state["tensors_sha256"])

        chosen = self.team.first(choose)
        if chosen is None:
            return
        path, digest = chosen
        own = found or checkpoint.load(path)
        if own.state["tensors_sha256"] != digest:
            raise ValueError(
                f"{path}: this process sees another checkpoint than the first one does. --out must "
                "be one directory for all processes."
            )
        restore(self.model, self.updater.optimizer, own.tensors)
        self.updater.scaler.load_state_dict(own.state["scaler"])
        self.step, self.validation = own.step, own.state["validation"]
        # At step 0 the figures begin anew.
        self._validation_is_due = self.step == 0 or own.state.get("validation_is_due", False)
        self._tell("message", message=f"resuming from {path}")

    def _publish(self) -> None:
        """The student as a model directory, made of whole weights."""
        is_shared = self.team.num_ranks > 1
        trained = whole_tensors(
            trained_parameters(self.model), keep=is_shared and self.team.is_first
        )
        target = self.out / "model"

        def publish() -> None:
            if target.exists():
                return
            student = self.model
            if is_shared:
                student = load_student(self.config, self.cache)
                for name, parameter in trained_parameters(student).items():
                    copy_whole(parameter, trained[name])
            publish_model(student, self.cache, target, config=self.config, metrics=self.validation)

        self.team.first(publish)

    def _diverged(self, what: str, value: float) -> NonFiniteLossError:
        path = checkpoint.newest(self.out / "checkpoints")
        last = f"The last checkpoint is {path}." if path else "There is no checkpoint yet."
        return NonFiniteLossError(
            f"the {what} is {value}. {last} Lower train_student.learning_rate, or use precision "
            "bf16 or fp32, and run again with another --out."
        )

    def _write(self, metrics: dict[str, float]) -> None:
        if self._log is not None:
            self._log.write(self.step, metrics)

    def _tell(
        self,
        event: Event,
        metrics: dict[str, float] | None = None,
        message: str = "",
    ) -> None:
        tokens_per_step = self.order.rows_per_step * self.cache.spec.sequence_length
        self._report(
            TrainProgress(
                event=event,
                step=self.step,
                num_steps=self.num_steps,
                tokens_done=self.step * tokens_per_step,
                tokens_total=self.num_steps * tokens_per_step,
                metrics=metrics or {},
                message=message,
            )
        )
