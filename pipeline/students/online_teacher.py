"""The teacher of a cache, in the loop of stage two: what ``--teacher-in-the-loop`` loads.

In: an open cache and a device. Out: an ``OnlineTeacher``, which is stage one's ``Teacher`` as stage
two sees it; the stages do not know each other, so it is put together here. It is there for
comparison: with the same rows and recipe, what does a student lose to the cache, and what does the
teacher cost?

B rows, T positions, V vocabulary, D width.
"""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache_format.metadata.spec import CacheSpec
from cache_format.reader import Cache
from cache_format.tables.random_projection import chosen_layers
from pipeline.recipes.cached_recipe import recipe_of
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.teacher.teacher import Teacher
from stages.cache_teacher.teacher.teacher_files import TeacherSource, resolve_teacher
from stages.train_student.losses.teacher_signal import TeacherStates

# Where it was found: what it is, its hashes say. And what rendered the rows, which are there.
_NOT_COMPARED = ("source", "revision", "chat_template_sha256")


def load_online_teacher(
    cache: Cache, device: torch.device, *, with_mean: bool, place: str | None = None
) -> "LoadedTeacher":
    """The teacher that ``cache`` was made by, loaded.

    ``place`` is its directory or Hub id, if it is no longer where it was. ``with_mean`` asks for
    the hidden states that the cache's sketch is of. Raises ValueError where the teacher is not
    found or is another one, and where the sketch's layers were drawn at random.
    """
    layers = _layers_of(cache.spec) if with_mean else ()
    source = resolve_teacher(_config(cache, place))
    _require_same(cache, source)
    return LoadedTeacher(Teacher(source, device), layers)


class LoadedTeacher:
    """An ``OnlineTeacher``."""

    def __init__(self, teacher: Teacher, layers: Sequence[int]) -> None:
        """``layers``, from 1, are those whose mean is asked for; none if there are none."""
        self._teacher, self._layers = teacher, layers

    @property
    def head_VD(self) -> Tensor:
        """The rows of its head that stand for ids, in the precision that they multiply in."""
        return self._teacher.head.weight_VD

    def states(self, input_ids: Tensor, is_document_start: Tensor) -> TeacherStates:
        """Its hidden states; in float32, as stage one takes them, where they are averaged."""
        starts = [np.flatnonzero(row).astype(np.int32) for row in is_document_start.cpu().numpy()]
        ids = input_ids.cpu().numpy().astype(np.int32)
        last_BTD, at_layers_BTD = self._teacher.forward(ids, starts, layers=self._layers)
        # Clones, because autograd refuses to keep what was made in inference mode.
        if not self._layers:
            return TeacherStates(last_BTD.clone(), None)
        mean_BTD = torch.zeros_like(last_BTD, dtype=torch.float32)
        for layer_BTD in at_layers_BTD:
            mean_BTD += layer_BTD
        return TeacherStates(last_BTD.clone(), mean_BTD.div_(len(self._layers)))


def _layers_of(spec: CacheSpec) -> tuple[int, ...]:
    """The layers that every unit's sketch is of."""
    chosen = spec.sketch.hidden_states
    if spec.sketch.num_states > 1:
        raise ValueError(
            f"cache_teacher.hidden_states: the cache has {chosen!r}, several layers, each by "
            "itself, which no term of a teacher in the loop takes. Set train_student.beta_start "
            "and beta_end to 0."
        )
    if chosen.startswith("random_layers"):
        raise ValueError(
            f"cache_teacher.hidden_states: the cache has {chosen!r}, other layers in every unit, "
            "which a teacher in the loop does not support. Set train_student.beta_start and "
            "beta_end to 0, or make a cache with cache_teacher.hidden_states=mean_over_layers."
        )
    return chosen_layers(chosen, spec.teacher.num_layers, spec.seed, unit=0)


def _config(cache: Cache, place: str | None) -> CacheTeacherConfig:
    """Settings that find the teacher and load it as it was when it made the cache."""
    spec = cache.spec
    settings: dict[str, Any] = {
        "teacher_dtype": spec.teacher.dtype,
        "attention": spec.teacher.attention,
        "sequence_length": spec.sequence_length,
        "top_k": 1,  # it keeps none
    }
    if place is not None:
        return CacheTeacherConfig(teacher=place, **settings)
    if spec.teacher.revision:
        revision = spec.teacher.revision
        return CacheTeacherConfig(
            teacher=spec.teacher.source, teacher_revision=revision, **settings
        )
    return CacheTeacherConfig(teacher=_local_place(cache), **settings)


def _local_place(cache: Cache) -> str:
    """The directory that the cache's recipe names."""
    step = "Give the teacher's directory: `--teacher-in-the-loop DIRECTORY`."
    place = recipe_of(cache, step).cache_teacher.teacher
    if not Path(place).expanduser().is_dir():
        raise ValueError(
            f"teacher {quote(place)}, which {cache.path} was made from, is not a directory in "
            f"{Path.cwd()}. {step}"
        )
    return place


def _require_same(cache: Cache, source: TeacherSource) -> None:
    """Raise ValueError naming every field in which ``source`` is not the cache's teacher."""
    expected, found = cache.spec.teacher, source.spec
    differing = [
        f"{name}: expected {getattr(expected, name)!r}, found {getattr(found, name)!r}"
        for name in (field.name for field in fields(expected))
        if name not in _NOT_COMPARED and getattr(expected, name) != getattr(found, name)
    ]
    if differing:
        raise ValueError(
            f"{source.directory}: not the teacher that {cache.path} was made with: teacher."
            f"{'; teacher.'.join(differing)}. Give the directory of that teacher."
        )
