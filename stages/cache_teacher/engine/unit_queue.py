"""The units that are still to be made, in rising order; one object for all threads of a run.

In: the budget, the units asked for, those that are finished. Out: the next one. Whether a unit is
needed is decided when it is asked for, as late as can be.
"""

import threading
from collections.abc import Mapping

from cache_format.metadata.receipt import ShardEntry
from stages.cache_teacher.config import UnitRange
from stages.cache_teacher.corpus.corpora import CorpusUnits
from stages.cache_teacher.engine.token_budget import TokenBudget
from stages.cache_teacher.reporting.progress import Progress
from stages.cache_teacher.worker_share import WorkerShare


class UnitQueue:
    """Hands out needed units that are not finished."""

    def __init__(
        self,
        units: UnitRange | WorkerShare,
        budget: TokenBudget,
        corpus: CorpusUnits,
        finished: Mapping[int, ShardEntry],
        progress: Progress,
    ) -> None:
        self.budget = budget
        self.has_corpus_ended = False
        """Whether the corpus ended before a unit that is needed."""
        self._wanted = budget.needed_units(units)
        self._corpus, self._finished, self._progress = corpus, finished, progress
        self._lock = threading.Lock()
        self._next: int | None = None
        for unit, entry in finished.items():
            budget.record(unit, entry.num_tokens)

    def is_empty(self) -> bool:
        """Whether nothing is left to make."""
        with self._lock:
            if self._next is None:
                self._next = self._find()
            return self._next is None

    def take(self) -> int | None:
        """The next unit; None where nothing is left."""
        with self._lock:
            found = self._find() if self._next is None else self._next
            self._next = None
            return found

    def _find(self) -> int | None:
        if self.has_corpus_ended:
            return None
        for unit in self._wanted:
            if unit in self._finished:
                self._progress.found_unit(self._finished[unit])
            elif self._corpus.has_unit(unit):
                return unit
            else:
                self.has_corpus_ended = True
                break
        return None
