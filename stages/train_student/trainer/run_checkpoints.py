"""A run and its checkpoints: go on from the newest one, or begin; and save the next one.

All processes call together. The first one chooses, writes and speaks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cache_format.errors import AdvisedError, NextStep
from stages.next_steps import StageAction
from stages.train_student.checkpoints import checkpoint
from stages.train_student.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointState,
    ForeignCheckpointError,
)
from stages.train_student.checkpoints.extension import extensions_before
from stages.train_student.checkpoints.run_record import RunRecord
from stages.train_student.checkpoints.saved_tensors import (
    require_tensors,
    restore,
    tensors_of,
)
from stages.train_student.distributed.context import DistributedContext
from stages.train_student.students.student import Student
from stages.train_student.trainer.initial_weights import InitialWeights, fill_with_initial
from stages.train_student.trainer.optimizer_step import Updater, require_scaler_state
from stages.train_student.trainer.run_directory import differences


@dataclass(frozen=True, kw_only=True)
class RunCheckpoints:
    """The checkpoints in ``out``, and what is saved in them and filled from them."""

    out: Path
    context: DistributedContext
    model: Student
    updater: Updater
    mixer_parameters: frozenset[str]
    """See ``StudentKind``."""
    say: Callable[[str], None]
    warn: Callable[[str], None]

    def save(self, state: CheckpointState, keep: int) -> Path:
        """Publish a checkpoint of ``state``; the newest ``keep`` stay."""
        tensors = tensors_of(self.model, self.updater.optimizer, keep=self.context.is_rank0)
        directory = self.out / "checkpoints"
        return self.context.run_on_rank0(lambda: checkpoint.save(directory, state, tensors, keep))

    def restore(self, record: RunRecord, initial: InitialWeights | None) -> Checkpoint | None:
        """Fill model, optimizer and scaler from the newest checkpoint of the run of ``record``.

        None where the run begins: from ``initial`` then, if it has such. Raises ValueError for a
        checkpoint of another run, and where the run began from weights that are not given.
        """
        found: Checkpoint | None = None

        def choose() -> tuple[Path, str] | None:
            nonlocal found
            found = self._newest(record)
            return None if found is None else (found.path, found.state.tensors_sha256)

        chosen = self.context.run_on_rank0(choose)
        if chosen is None:
            self._begin(record, initial)
            return None
        path, digest = chosen
        own = found or checkpoint.load(path)
        if own.state.tensors_sha256 != digest:
            raise ValueError(
                f"{path}: this process sees another checkpoint than the first process. The run's "
                "directory must be the same for all processes."
            )
        restore(self.model, self.updater.optimizer, own.tensors)
        self.updater.scaler.load_state_dict(own.state.scaler)
        return own

    def _newest(self, record: RunRecord) -> Checkpoint | None:
        """The newest one that is whole and fits; what is damaged is renamed."""

        def check(candidate: Checkpoint) -> None:
            _require_own(record, candidate)
            require_tensors(self.model, self.updater.optimizer, candidate.tensors)
            require_scaler_state(self.updater.scaler, candidate.state.scaler)

        found, problems = checkpoint.load_newest(self.out / "checkpoints", check)
        for message in checkpoint.set_aside(problems):
            self.warn(message)
        if problems and found is None:
            self.warn("no checkpoint is intact: training starts over")
        return found

    def _begin(self, record: RunRecord, initial: InitialWeights | None) -> None:
        sha256 = record.identity.get("initial_weights_sha256")
        if sha256 is None:
            return
        if initial is None or initial.sha256 != sha256:
            raise AdvisedError(
                f"{self.out}: no checkpoint is intact, so the run has to start over from the "
                f"weights of {record.init_location}.",
                NextStep("Use them as its initial weights.", StageAction.INITIAL_WEIGHTS),
            )
        for note in initial.notes:
            self.warn(note)
        fill_with_initial(self.model, initial, self.mixer_parameters)
        self.say(f"beginning from the weights of {initial.location}")


def _require_own(record: RunRecord, checkpoint: Checkpoint) -> None:
    """Raise ForeignCheckpointError unless ``checkpoint`` is of the run of ``record``."""
    state = checkpoint.state
    differing = differences(
        state.identity | {"extensions": state.extensions},
        record.identity | {"extensions": extensions_before(state.step, record.extensions)},
    )
    if differing:
        raise ForeignCheckpointError(
            f"{checkpoint.path}: a checkpoint of another run: {'; '.join(differing)}. Move it out "
            "of this directory to resume the run without it."
        )
