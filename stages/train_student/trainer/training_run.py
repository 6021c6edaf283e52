"""One training run: a student, its optimizer, and the step that they are at.

In: settings, the cache or caches, the run's record and the processes that share it. Out: metrics,
checkpoints and the model directory.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from stages.train_student.checkpoints import checkpoint
from stages.train_student.checkpoints.checkpoint import CheckpointState
from stages.train_student.checkpoints.extension import extensions_before, num_steps_at
from stages.train_student.checkpoints.run_record import RunRecord, write_record
from stages.train_student.checkpoints.saved_tensors import trained_sha256
from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.loader import Loader, Step, mixed_order
from stages.train_student.data.mixture import CacheMixture
from stages.train_student.data.sampler import RankSlice, micro_batch_seed
from stages.train_student.data.targets.moment_tables import require_teachers_head
from stages.train_student.distributed.context import DistributedContext
from stages.train_student.evaluation import validation
from stages.train_student.export.publish_model import require_tokenizer
from stages.train_student.export.publish_student import publish_student
from stages.train_student.losses.alignment import AlignmentLoss, TrainingLoss
from stages.train_student.losses.loss_term import LossNormalizer
from stages.train_student.losses.objective import make_objective
from stages.train_student.losses.schedules import LearningRates, learning_rates
from stages.train_student.losses.teacher_signal import OnlineTeacher
from stages.train_student.losses.terms import LossWeights, cache_needs, loss_weights
from stages.train_student.students.registry import student_kind
from stages.train_student.students.student import Student
from stages.train_student.tracking.metrics import NOTHING_WRITTEN, MetricsLog, finite_only
from stages.train_student.tracking.run_progress import Event, Report, TrainProgress
from stages.train_student.tracking.throughput import Throughput
from stages.train_student.trainer import run_directory
from stages.train_student.trainer.initial_weights import InitialWeights
from stages.train_student.trainer.optimizer_step import NonFiniteError, Updater
from stages.train_student.trainer.rank_slice import ParallelLoss
from stages.train_student.trainer.run_checkpoints import RunCheckpoints
from stages.train_student.trainer.stopping import StopNow, StoppedError, Stopping, StopRequest


class NonFiniteLossError(ValueError):
    """The loss or its gradient is NaN or infinite."""


class TrainingRun:
    """The state of one training run: student, optimizer, scaler and step."""

    def __init__(
        self,
        config: TrainStudentConfig,
        mixture: CacheMixture,
        record: RunRecord,
        context: DistributedContext,
        device: torch.device,
        out: Path,
        report: Report,
        teacher: OnlineTeacher | None,
        make_student: Callable[[], Student],
    ) -> None:
        self.config, self.mixture, self.record, self.out = config, mixture, record, out
        self.cache = mixture.reference
        self.rows = [record.rows_of(cache.cache_id) for cache in mixture.caches]
        self.context, self.device, self._report = context, device, report
        self.order = mixed_order(mixture, config, [rows.train for rows in self.rows])
        self.steps_per_epoch = self.order.steps_per_epoch
        self.num_planned = config.max_steps or self.steps_per_epoch * config.num_train_epochs
        require_tokenizer(self.cache)
        self.kind = student_kind(config.student.kind)
        self._make_student = make_student
        self.model: Student = make_student().to(device)
        self.throughput = Throughput(
            self.kind.operations_per_token(self.model), device, config.precision, context.num_ranks
        )
        self.objective = make_objective(self.model, mixture, config, device, teacher)
        if teacher is None and cache_needs(config).temperatures:
            require_teachers_head(self.cache, self.objective.head_VD)
        self.reads_hidden_states = (
            self.objective.signal.reads_hidden_states and cache_needs(config).reads_sketch
        )
        sharding = self.kind.sharding(self.model) if config.parallel == "fsdp" else None
        self.loss = ParallelLoss(self.model, self._training_loss(), sharding, context)
        mixers = self.kind.mixer_parameters(self.model)
        self.updater = Updater(self.model, self.loss, config, context, mixers)
        self.checkpoints = RunCheckpoints(
            out=out,
            context=context,
            model=self.model,
            updater=self.updater,
            mixer_parameters=mixers,
            say=self._say,
            warn=self._warn,
        )
        self.step = 0
        self.validation: dict[str, float] = {}
        self._validation_is_due = True
        self._stopping = Stopping(StopRequest(), context)
        self._mark = NOTHING_WRITTEN
        self._log: MetricsLog | None = None

    @property
    def num_steps(self) -> int:
        """The last step, counted from 1."""
        extensions = self.record.extensions
        return extensions[-1].to_step if extensions else self.num_planned

    def train(self, stopping: Stopping, sentence: str) -> dict[str, float]:
        """Tell ``sentence``, train to the last step, publish the model."""
        self._stopping = stopping
        if sentence:
            self._say(sentence)
        with stopping.interruptible():
            self._prepare_student()
        self.model.train()
        with ExitStack() as stack:
            if self.context.is_rank0:
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
            num_scored, num_stopping = self.context.sum([own_scored, self._stopping.is_asked])
            if num_stopping:
                raise StopNow
            self._after_step(self._optimize(step, int(num_scored)))
        with self._stopping.interruptible():
            self._publish()

    def _training_loss(self) -> TrainingLoss:
        """What is minimized; validation asks the objective, whatever that is."""
        if self.config.objective == "distillation":
            return self.objective
        return AlignmentLoss(device=self.device, dtype=self.objective.dtype)

    def _next(self, steps: Iterator[Step]) -> Step | None:
        with self._stopping.interruptible():  # a cache at a URL may be slow
            return next(steps, None)

    def _prepare_student(self) -> None:
        """Let the student choose what computes it on this device."""
        if sentence := self.kind.prepare(self.config.student, self.model, self.device):
            self._say(sentence)
        num_positions = self.cache.spec.sequence_length
        if warning := self.kind.row_warning(self.config.student, num_positions):
            self._warn(warning)

    def _open_log(self) -> MetricsLog:
        settings = dataclasses.asdict(self.config) | {"cache_id": self.mixture.cache_id}
        return MetricsLog(
            self.out,
            from_step=self.step,
            mark=self._mark,
            trackers=self.config.report_to,
            config=settings,
            warn=self._warn,
        )

    def _loader(self) -> Loader:
        return Loader(
            self.mixture,
            self.order,
            self.device,
            RankSlice(self.context.rank, self.context.num_ranks),
            num_threads=self.config.reader_threads,
            with_sketch=self.reads_hidden_states,
        )

    def _optimize(self, step: Step, num_scored: int) -> dict[str, float]:
        """One optimizer step; returns its metrics."""
        weights = loss_weights(self.config, self.step, self.steps_per_epoch)
        num_steps = num_steps_at(self.step, self.num_planned, self.record.extensions)
        rates = learning_rates(self.config, self.step, num_steps)
        normalizer = LossNormalizer(max(1, num_scored), self.order.rows_per_step)
        numbers = RankSlice(self.context.rank, self.context.num_ranks).micro_batches(
            self.config.gradient_accumulation_steps
        )
        seeds = (micro_batch_seed(self.config.seed, self.step, number) for number in numbers)
        try:
            with self._stopping.interruptible():
                check = self._stopping.check_alone
                sums = self.updater.accumulate(step, weights, normalizer, seeds, check)
            figures = self.updater.update(sums, rates)
        except NonFiniteError as error:
            raise self._diverged(f"{error.name} of step {self.step}", error.value) from error
        tokens = self.order.rows_per_step * self.cache.spec.sequence_length
        return {
            **{f"train/{name}": value for name, value in figures.items()},
            **self._schedule(weights, rates),
            **self.throughput.figures(tokens),
        }

    def _schedule(self, weights: LossWeights, rates: LearningRates) -> dict[str, float]:
        """What the step's schedules said, as far as it mattered."""
        found = {"learning_rate": rates.base}
        if self.config.objective == "distillation":
            found = dataclasses.asdict(weights) | found
            for name in ("state_mse", "layer_mse"):
                if not found[name]:
                    del found[name]
        if self.config.mixer_learning_rate is not None:
            found["mixer_learning_rate"] = rates.mixer
        return {f"schedule/{name}": value for name, value in found.items()}

    def _after_step(self, metrics: dict[str, float]) -> None:
        self.step += 1
        is_last = self.step == self.num_steps
        if is_last or self.step == 1 or self.step % self.config.logging_steps == 0:
            self._write(metrics)
        self._tell("step", metrics)
        validates = is_last or self.step % self.config.eval_steps == 0
        self._validation_is_due = validates
        saves = is_last or self.step % self.config.save_steps == 0
        if validates:
            self._validate()
        if saves:
            self._save()
        if validates or saves:
            self.throughput.restart()

    def _validate(self) -> None:
        """Every process computes the same, so that none has to wait for another's figures."""
        try:
            with self._stopping.interruptible():
                found = self._scored()
        finally:
            self.loss.release()
        self.validation, self._validation_is_due = found, False
        loss = self.validation["validation/loss"]
        if not math.isfinite(loss):
            raise self._diverged(f"validation loss of step {self.step}", loss)
        self._write(self.validation)
        self._tell("validation", self.validation)

    def _scored(self) -> dict[str, float]:
        """The figures of a validation: of several caches or corpora over all, and of each."""
        parts = {}
        for number, (cache, rows) in enumerate(zip(self.mixture.caches, self.rows, strict=True)):
            label = None if self.record.caches is None else self.record.caches[number].label
            objective = self.objective.of_cache(number)
            of_corpora = validation.batches_by_corpus(
                cache, rows.validation, self.config.validation_rows, self.config.batch_size
            )
            for corpus, batches in of_corpora.items():
                name = ".".join(filter(None, (label, corpus)))
                parts[name] = objective, self._stopping.checked(batches)
        if list(parts) == [""]:
            return validation.score(self.model, *parts[""])
        return validation.score_each(self.model, parts)

    def _save(self) -> None:
        state = CheckpointState(
            step=self.step,
            tensors_sha256="",
            identity=self.record.identity,
            extensions=extensions_before(self.step, self.record.extensions),
            config=dataclasses.asdict(self.config),
            scaler=self.updater.scaler.state_dict(),
            validation=finite_only(self.validation),
            validation_is_due=self._validation_is_due,
            metrics=self._log.mark() if self._log else NOTHING_WRITTEN,
            origin_sha256=self.record.origin_sha256,
        )
        path = self.checkpoints.save(state, self.config.save_total_limit)
        self._tell("checkpoint", message=str(path))

    def restore(self, initial: InitialWeights | None) -> None:
        """Continue from the newest checkpoint, or begin."""
        found = self.checkpoints.restore(self.record, initial)
        if found is None:
            self._record_origin()
        else:
            self.step, self.validation = found.step, found.state.validation
            self._validation_is_due = found.state.validation_is_due
            self._mark = found.state.metrics
            self._say(f"resuming from {found.path}")

    def _record_origin(self) -> None:
        """Record what the run begins with; of students that began alike, weights can be merged."""
        origin = trained_sha256(self.model)
        self.record = dataclasses.replace(self.record, origin_sha256=origin)
        self.context.run_on_rank0(partial(write_record, self.out, self.record))

    def extend(self, to_step: int) -> None:
        """Train on to ``to_step``. Raises ValueError where that is no extension."""
        extend = partial(run_directory.extend, self.out, self.record, planned=self.num_planned)
        self.record = self.context.run_on_rank0(partial(extend, step=self.step, to_step=to_step))
        self._say(f"training continues to step {to_step}")

    def _publish(self) -> None:
        for key in publish_student(
            self.model,
            self.mixture,
            self.out / "model",
            self.context,
            make_student=self._make_student,
            config=self.config,
            step=self.step,
            origin_sha256=self.record.origin_sha256,
            metrics=self.validation,
        ):
            self._say(
                f"{key} of the teacher's tokenizer_config.json is not copied to the student's: it "
                "refers to code, or to another file"
            )

    def _diverged(self, what: str, value: float) -> NonFiniteLossError:
        path = checkpoint.newest(self.out / "checkpoints")
        last = f"The last checkpoint is {path}." if path else "There is no checkpoint yet."
        change = "Lower train_student.learning_rate, or use precision bf16 or fp32"
        if self.step == 0:  # no learning rate has had a part in it
            change = (
                "Nothing has been learned yet: the weights that the run begins from, or what the "
                "cache holds, are too large. Use precision fp32, or other weights or another cache"
            )
        return NonFiniteLossError(
            f"the {what} is {value}. {last} {change}, and run again with another directory."
        )

    def _write(self, metrics: dict[str, float]) -> None:
        if self._log is not None:
            self._log.write(self.step, metrics)

    def _say(self, message: str) -> None:
        self._tell("message", message=message)

    def _warn(self, message: str) -> None:
        self._tell("warning", message=message)

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
