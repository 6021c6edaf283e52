"""The output directory of a run: is it free, and if it holds a run, is it this one?

``run.json`` states what must be the same for a run to be gone on with: the cache, its shards and
every setting that shapes the result. A cache that has been extended since is still the same cache:
the run keeps to the rows it began with.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cache_format.atomic import atomic_file, make_directory
from cache_format.reader import Cache
from stages.train_student.config import TrainStudentConfig

_MAY_CHANGE_ON_RESUME = {
    *("device", "reader_threads", "log_every", "validate_every", "validation_rows"),
    *("checkpoint_every", "keep_checkpoints", "loss_chunk"),
    *("compile", "slstm", "parallel", "trackers"),
}


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Keep other runs out of ``out``. Raises ValueError if one is in it.

    A file system without locks lets everyone in.
    """
    make_directory(out)
    descriptor = os.open(out, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{out}: another process is training into it. Wait for it, or choose another "
                "--out. Several processes share a run if torchrun starts them."
            ) from error
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class RunRows:
    """How many rows of each split the run uses: the first ones, in the order of units."""

    train: int
    validation: int


def prepare(
    out: Path,
    cache: Cache,
    config: TrainStudentConfig,
    *,
    resume: bool,
    recipe_toml: str,
    online: bool = False,
) -> RunRows:
    """Make ``out``, or make sure that it holds this very run. Raises ValueError if it does not.

    ``online``: the run asks a teacher in the loop, which is part of what it is.
    """
    identity_file = out / "run.json"
    has_checkpoints = any((out / "checkpoints").glob("step-*"))
    if (out / "model").exists() and not has_checkpoints:
        raise ValueError(
            f"{out} holds a finished student whose checkpoints are gone. Choose another --out, or "
            f"move {out / 'model'} away."
        )
    if identity_file.exists() and has_checkpoints:
        return _check_same(out, _read(identity_file), cache, config, resume, online)
    # A run that ended before its first checkpoint has nothing to lose: it may begin anew, with
    # other settings where the first ones ran out of memory.
    if not identity_file.exists() and out.exists() and any(out.iterdir()):
        lost = f" ({identity_file.name} is missing)" if has_checkpoints else ""
        raise ValueError(f"{out} holds something that is no run{lost}. Choose another --out.")
    num_shards = (len(cache.shards("train")), len(cache.shards("validation")))
    identity = _identity(config, cache, *num_shards, online)
    make_directory(out)
    for name, text in (("recipe.toml", recipe_toml), ("run.json", json.dumps(identity, indent=1))):
        with atomic_file(out / name) as file:
            file.write(text.encode())
    return _rows(identity)


def recorded_precision(out: Path) -> Literal["fp32", "bf16", "fp16"] | None:
    """The precision of the run in ``out``; None where there is none to go on with."""
    identity_file = out / "run.json"
    if not identity_file.exists() or not any((out / "checkpoints").glob("step-*")):
        return None
    found = _read(identity_file).get("precision")
    return found if found in ("fp32", "bf16", "fp16") else None


def _read(identity_file: Path) -> dict[str, Any]:
    try:
        identity: dict[str, Any] = json.loads(identity_file.read_text())
        _rows(identity)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{identity_file}: damaged ({error!r}). Its checkpoints cannot be vouched for: choose "
            "another --out."
        ) from error
    return identity


def _check_same(
    out: Path,
    before: dict[str, Any],
    cache: Cache,
    config: TrainStudentConfig,
    resume: bool,
    online: bool,
) -> RunRows:
    if not resume:
        raise ValueError(
            f"{out} holds a run already. Add --resume to go on with it, or choose another --out."
        )
    num_shards = (before["num_train_shards"], before["num_validation_shards"])
    now = _identity(config, cache, *num_shards, online)
    differing = [
        f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if differing:
        raise ValueError(
            f"{out} holds another run: {'; '.join(differing)}. Restore these settings to resume "
            "it, or choose another --out."
        )
    return _rows(before)


def _identity(
    config: TrainStudentConfig, cache: Cache, num_train: int, num_validation: int, online: bool
) -> dict[str, Any]:
    train = cache.shards("train")[:num_train]
    validation = cache.shards("validation")[:num_validation]
    hashes = "".join(shard.sha256 for shard in (*train, *validation))
    identity: dict[str, Any] = {
        "cache_id": cache.cache_id,
        "num_train_shards": len(train),
        "num_validation_shards": len(validation),
        "num_train_rows": sum(shard.num_rows for shard in train),
        "num_validation_rows": sum(shard.num_rows for shard in validation),
        "shards_sha256": hashlib.sha256(hashes.encode()).hexdigest(),
    }
    if online:
        identity["teacher_in_the_loop"] = True
    for key, value in dataclasses.asdict(config).items():
        if key not in _MAY_CHANGE_ON_RESUME:
            identity[key] = value
    as_on_disk: dict[str, Any] = json.loads(json.dumps(identity))  # tuples become lists
    return as_on_disk


def _rows(identity: dict[str, Any]) -> RunRows:
    return RunRows(identity["num_train_rows"], identity["num_validation_rows"])
