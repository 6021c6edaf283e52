"""Trainings by what they are made of, each kept as a JSON when it is finished.

In: a directory and what all trainings share. Out: the figures of one, from the file if there is
one of equal settings.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.recall.mixers import ModelSizes, make_model
from benchmarks.recall.task import RecallTask
from benchmarks.recall.training import TrainingSettings, train


@dataclass(frozen=True)
class Trial:
    """One training."""

    mixer: str
    length: int
    pairs: int
    seed: int


class Trials:
    """Trainings of equal settings."""

    def __init__(self, work: Path, sizes: ModelSizes, settings: TrainingSettings) -> None:
        self._work, self._sizes, self._settings = work, sizes, settings

    def figures(self, trial: Trial) -> dict[str, Any]:
        """What ``training.train`` gives, made now or before."""
        if (kept := self.kept(trial)) is not None:
            return kept
        task = RecallTask(length=trial.length, pairs=trial.pairs, vocabulary=self._sizes.vocabulary)
        model = make_model(trial.mixer, self._sizes, trial.seed)
        found = train(model, task, self._settings, trial.seed)
        path = self._path(trial)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(found))
        unfinished.replace(path)
        return found

    def kept(self, trial: Trial) -> dict[str, Any] | None:
        """What was made before; None where it is not finished."""
        path = self._path(trial)
        if not path.exists():
            return None
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def _path(self, trial: Trial) -> Path:
        own = {"trial": asdict(trial), "sizes": asdict(self._sizes)}
        own["training"] = asdict(self._settings)
        key = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]
        name = f"{trial.mixer}-{trial.length}-{trial.pairs}-{trial.seed}-{key}.json"
        return self._work / name
