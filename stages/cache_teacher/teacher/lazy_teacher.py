"""A teacher that is loaded when it is first needed, and freed when memory is needed."""

import gc
import threading

import torch

from stages.cache_teacher.reporting.progress import Progress
from stages.cache_teacher.teacher.teacher import Teacher
from stages.cache_teacher.teacher.teacher_files import TeacherSource
from stages.compute.device import current_device


class LazyTeacher:
    """A teacher that is loaded when it is first needed."""

    def __init__(self, source: TeacherSource, device: torch.device, progress: Progress) -> None:
        self.source, self._device, self.progress = source, device, progress
        self._lock = threading.Lock()
        self._teacher: Teacher | None = None

    def load(self) -> Teacher:
        """The teacher. Raises ValueError if it cannot be used."""
        with self._lock:
            if self._teacher is None:
                self.progress.show("loading teacher")
                with current_device(self._device):
                    self._teacher = Teacher(self.source, self._device)
            return self._teacher

    def unload(self) -> None:
        """Free its memory, where nobody else holds it; ``load`` would load it again."""
        with self._lock:
            if self._teacher is None:
                return
            self._teacher = None
            gc.collect()  # modules refer to one another
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
