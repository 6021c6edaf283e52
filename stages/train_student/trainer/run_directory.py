"""The output directory of a run: check that it is empty or holds the same run.

``run.json`` states what must be the same for a run to be gone on with: the cache or caches, their
shards and weights, the initial weights and every setting that shapes the result. A cache that has
been extended since is still the same cache: the run keeps to the rows it began with.
"""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cache_format.errors import Action, AdvisedError, NextStep
from cache_format.reader import Cache
from cache_format.storage.atomic import lock_unless_held, make_directory, publish_bytes
from stages.next_steps import StageAction
from stages.train_student.checkpoints.extension import extended
from stages.train_student.checkpoints.recorded_caches import (
    NumShards,
    all_shards,
    identity_of_caches,
    location_of,
    mixing_differs,
    recorded_caches,
    shards_before,
    without_mixing,
)
from stages.train_student.checkpoints.run_record import (
    RUN_FILE,
    RunData,
    RunRecord,
    read_record,
    write_record,
)
from stages.train_student.checkpoints.teacher_identity import teacher_identity
from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.mixture import CacheMixture, mixture_of

if TYPE_CHECKING:
    from stages.train_student.trainer.initial_weights import InitialWeights

_MAY_CHANGE_ON_RESUME = {
    *("device", "reader_threads", "logging_steps", "eval_steps", "validation_rows"),
    *("save_steps", "save_total_limit", "loss_chunk"),
    *("compile", "parallel", "report_to"),
}


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Keep other runs out of ``out``. Raises ValueError if one is in it.

    A file system without locks lets everyone in.
    """
    make_directory(out)
    with lock_unless_held(out) as is_ours:
        if not is_ours:
            raise AdvisedError(
                f"{out}: another process is training into it.",
                NextStep(
                    "Wait for it, or choose another directory. To train with several processes, "
                    "use torchrun.",
                    Action.CHOOSE_DIRECTORY,
                ),
            )
        yield


def prepare(
    out: Path,
    cache: Cache | CacheMixture,
    config: TrainStudentConfig,
    *,
    resume: bool,
    recipe_toml: str,
    online: bool = False,
    initial: "InitialWeights | None" = None,
    environment: dict[str, str] | None = None,
) -> RunRecord:
    """Make ``out``, or make sure that it holds this very run. Raises ValueError if it does not.

    ``online``: the run asks a teacher in the loop, which is part of what it is. ``initial`` are the
    weights that a new run begins from; one that is resumed has had them. ``environment`` is what is
    recorded of a new run.
    """
    mixture = mixture_of(cache)
    record = require_same_or_new(
        out, mixture, config, resume=resume, online=online, initial=initial
    )
    if record is not None:
        moved = dataclasses.replace(
            record,
            cache_location=location_of(mixture.reference),
            caches=recorded_caches(mixture, record.caches),
        )
        if moved != record:
            write_record(out, moved)
        return moved
    identity = _identity(config, mixture, all_shards, online)
    if initial is not None:
        identity["initial_weights_sha256"] = initial.sha256
    record = RunRecord(
        identity=identity,
        cache_location=location_of(mixture.reference),
        caches=recorded_caches(mixture),
        init_location=None if initial is None else initial.location,
        data=RunData(
            sequence_length=mixture.reference.spec.sequence_length,
            train_bytes=_bytes_of_epoch(mixture),
        ),
        environment=environment,
    )
    make_directory(out)
    publish_bytes(out / "recipe.toml", recipe_toml.encode())
    write_record(out, record)
    return record


def require_same_or_new(
    out: Path,
    cache: Cache | CacheMixture,
    config: TrainStudentConfig,
    *,
    resume: bool,
    online: bool = False,
    initial: "InitialWeights | None" = None,
) -> RunRecord | None:
    """The record of this very run in ``out``; None where it begins. Nothing is written.

    Raises ValueError as ``prepare`` does.
    """
    _require_own_checkpoints(out)
    identity_file = out / RUN_FILE
    has_checkpoints = any((out / "checkpoints").glob("step-*"))
    if (out / "model").exists() and not has_checkpoints:
        raise AdvisedError(
            f"{out} holds a finished student without checkpoints.",
            NextStep(
                f"Choose another directory, or move {out / 'model'} away.", Action.CHOOSE_DIRECTORY
            ),
        )
    if identity_file.exists() and has_checkpoints:
        if not resume:
            raise AdvisedError(
                f"{out} already holds a run.",
                NextStep(
                    "Resume it, or choose another directory.",
                    *(StageAction.RESUME, Action.CHOOSE_DIRECTORY),
                ),
            )
        return require_same(out, cache, config, online=online, initial=initial)
    # A run that ended before its first checkpoint has nothing to lose: it may begin anew, with
    # other settings where the first ones ran out of memory.
    if not identity_file.exists() and out.exists() and any(out.iterdir()):
        lost = f" ({identity_file.name} is missing)" if has_checkpoints else ""
        raise AdvisedError(
            f"{out} is not empty, and not a run{lost}.",
            NextStep("Choose another directory.", Action.CHOOSE_DIRECTORY),
        )
    return None


def extend(out: Path, record: RunRecord, *, planned: int, step: int, to_step: int) -> RunRecord:
    """``record`` of a run of ``planned`` steps that has reached ``step``, extended to ``to_step``.

    Raises ValueError where that is no extension.
    """
    extensions = extended(record.extensions, planned=planned, step=step, to_step=to_step)
    longer = dataclasses.replace(record, extensions=extensions)
    if longer != record:
        write_record(out, longer)
    return longer


def recorded_precision(out: Path) -> Literal["fp32", "bf16", "fp16"] | None:
    """The precision of the run in ``out``; None where there is none to resume."""
    if not (out / RUN_FILE).exists() or not any((out / "checkpoints").glob("step-*")):
        return None
    found = read_record(out).identity.get("precision")
    return found if found in ("fp32", "bf16", "fp16") else None


def _require_own_checkpoints(out: Path) -> None:
    """Raise ValueError where this run would delete old checkpoints of another one.

    A link to a directory on another disk is no other run's.
    """
    directory = out / "checkpoints"
    if not directory.is_symlink():
        return
    target = directory.resolve()
    for other in (target, target.parent):
        if other != out.resolve() and (other / RUN_FILE).exists():
            raise AdvisedError(
                f"{directory}: a symbolic link to {target}, which is in another run. Saving would "
                "delete that run's older checkpoints. Nothing was changed.",
                NextStep(
                    "Replace the link by a copy of that directory, or begin a new run from the "
                    "weights of that run.",
                    StageAction.INITIAL_WEIGHTS,
                ),
            )


def require_same(
    out: Path,
    cache: Cache | CacheMixture,
    config: TrainStudentConfig,
    *,
    online: bool = False,
    initial: "InitialWeights | None" = None,
) -> RunRecord:
    """The record of the run in ``out``. Raises ValueError where it is not that of ``config``."""
    mixture, record = mixture_of(cache), read_record(out)
    before = with_new_settings(record.identity, config)
    now = _identity(config, mixture, shards_before(before), online)
    key = "initial_weights_sha256"
    if initial is not None:
        now[key] = initial.sha256
    elif key in before:
        now[key] = before[key]
    if isinstance(before.get("teacher"), dict):  # of an older version, it says less of the teacher
        now["teacher"] = {k: v for k, v in now["teacher"].items() if k in before["teacher"]}
    differing = mixing_differs(before, now, mixture, record.cache_locations)
    rest = (before, now) if not differing else (without_mixing(before), without_mixing(now))
    differing += differences(*rest)
    if differing:
        text, actions = "Restore these settings to resume it, or choose another directory.", []
        if before.get(key) != now.get(key):
            text += " It already has its initial weights: do not set them again."
            actions = [StageAction.INITIAL_WEIGHTS]
        elif any(before.get(name) != now.get(name) for name in ("max_steps", "num_train_epochs")):
            text += " To train for longer, restore them and extend the run."
            actions = [StageAction.EXTEND]
        raise AdvisedError(
            f"{out} holds another run: {'; '.join(differing)}.",
            NextStep(text, Action.CHOOSE_DIRECTORY, *actions),
        )
    return record


def with_new_settings(identity: dict[str, Any], config: TrainStudentConfig) -> dict[str, Any]:
    """``identity`` with the defaults of settings that ``config`` has and that are newer than it."""
    defaults = deciding_settings(TrainStudentConfig(student=type(config.student)()))
    student = defaults.pop("student") | identity.get("student", {})
    return defaults | identity | {"student": student}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two identities of a run, in words."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        one, other = before.get(key), now.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += [f"{key}.{difference}" for difference in differences(one, other)]
        elif one != other:
            found.append(f"{key} was {one!r} and is {other!r}")
    return found


def _identity(
    config: TrainStudentConfig, mixture: CacheMixture, num_shards: NumShards, online: bool
) -> dict[str, Any]:
    identity = identity_of_caches(mixture, num_shards)
    identity["teacher"] = teacher_identity(mixture.reference)
    if online:
        identity["teacher_in_the_loop"] = True
    return identity | deciding_settings(config)


def _bytes_of_epoch(mixture: CacheMixture) -> int:
    """Bytes of the shards that an epoch reads; of several caches, by how often each is read."""
    sizes = [sum(shard.num_bytes for shard in cache.shards("train")) for cache in mixture.caches]
    if mixture.weights is None:
        return sum(sizes)
    num_rows = [cache.num_rows("train") for cache in mixture.caches]
    passes = [
        weight / sum(mixture.weights) * sum(num_rows) / rows
        for weight, rows in zip(mixture.weights, num_rows, strict=True)
    ]
    return round(sum(size * number for size, number in zip(sizes, passes, strict=True)))


def deciding_settings(config: TrainStudentConfig) -> dict[str, Any]:
    """The settings that decide what a run computes, as they are on disk."""
    settings = {
        key: value
        for key, value in dataclasses.asdict(config).items()
        if key not in _MAY_CHANGE_ON_RESUME
    }
    for key in config.student.speed_keys:
        del settings["student"][key]
    as_on_disk: dict[str, Any] = json.loads(json.dumps(settings))  # tuples become lists
    return as_on_disk
