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
        own = {"trial": asdict(trial), "sizes": asdict(self._sizes)}
        own["training"] = asdict(self._settings)
        key = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]
        kept = self._work / f"{trial.mixer}-{trial.length}-{trial.pairs}-{trial.seed}-{key}.json"
        if kept.exists():
            found: dict[str, Any] = json.loads(kept.read_text())
            return found
        task = RecallTask(length=trial.length, pairs=trial.pairs, vocabulary=self._sizes.vocabulary)
        model = make_model(trial.mixer, self._sizes, trial.seed)
        found = train(model, task, self._settings, trial.seed)
        self._work.mkdir(parents=True, exist_ok=True)
        unfinished = kept.with_suffix(".tmp")
        unfinished.write_text(json.dumps(found))
        unfinished.replace(kept)
        return found
