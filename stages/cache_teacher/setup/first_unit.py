"""Fit what a new cache needs to its first unit, or to the first one of each of its corpora, whose
rows take turns by their shares of tokens; see ``fitted.Fit``."""

from dataclasses import dataclass
from functools import cached_property

from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.targets import KL_TEMPERATURES, CodedStates, TailMoment
from cache_format.tables.hidden_transform import HiddenTransform
from cache_format.tables.principal_components import Projection
from cache_format.tables.tail_moment import MomentTransform
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.corpus.corpora import Corpora
from stages.cache_teacher.corpus.packing import PackedUnit, taking_turns
from stages.cache_teacher.corpus.unit_reader import UnitReader
from stages.cache_teacher.setup.hidden_fit import fit_transform
from stages.cache_teacher.setup.moment_fit import fit_moment
from stages.cache_teacher.setup.pca import principal_components
from stages.cache_teacher.teacher.lazy_teacher import LazyTeacher
from stages.cache_teacher.teacher.teacher import Teacher
from stages.compute.device import current_device

_ROWS_OF_FIT = 4
"""Rows in a forward pass for a fit, which keeps whole hidden states."""


@dataclass(frozen=True)
class FirstUnit:
    """Fits to the first unit of each corpus; loads the teacher for that."""

    config: CacheTeacherConfig
    corpora: Corpora
    lazy_teacher: LazyTeacher

    def projection(self, spec: CacheSpec) -> Projection:
        """See ``Fit``."""
        packed, sketch, teacher = self._packed(spec), spec.sketch, self._teacher
        self.lazy_teacher.progress.show("fitting")
        with current_device(teacher.device):
            return principal_components(
                teacher, packed, sketch.hidden_states, sketch.dim, self._num_rows
            )

    def transform(self, spec: CacheSpec) -> tuple[CodedStates, HiddenTransform]:
        """See ``Fit``."""
        packed, teacher, states = self._packed(spec), self._teacher, spec.targets.states
        self.lazy_teacher.progress.show("fitting")
        with current_device(teacher.device):
            hidden, transform = fit_transform(
                teacher, packed, states.max_kl, self._num_rows, states.quantization
            )
        lost = ", ".join(
            f"{kl:.3g} at T = {temperature:g}"
            for kl, temperature in zip(hidden.self_kl, KL_TEMPERATURES, strict=True)
        )
        self.lazy_teacher.progress.say(
            f"hidden states: {hidden.num_components} of {spec.teacher.hidden_size} coefficients, "
            f"KL to the teacher's own distribution, nats: {lost}"
        )
        return hidden, transform

    def moment(self, spec: CacheSpec) -> tuple[TailMoment, MomentTransform]:
        """See ``Fit``."""
        packed, teacher = self._packed(spec), self._teacher
        self.lazy_teacher.progress.show("fitting")
        with current_device(teacher.device):
            part, moment = fit_moment(teacher, packed, spec.targets, self._num_rows)
        self.lazy_teacher.progress.say(
            f"tail's moment: {part.dim} of {spec.teacher.hidden_size} directions, "
            f"{part.num_components} coefficients"
        )
        return part, moment

    @cached_property
    def _teacher(self) -> Teacher:
        return self.lazy_teacher.load()

    @property
    def _num_rows(self) -> int:
        return self.config.rows_per_forward or _ROWS_OF_FIT

    def _packed(self, spec: CacheSpec) -> PackedUnit:
        reader = UnitReader(self.corpora, self.lazy_teacher.source, spec)
        units = []
        for corpus in self.corpora.each.values():
            documents = corpus.read_unit(0)
            assert documents is not None, "each corpus has a first unit"
            units.append(reader.prepare(0, documents, corpus.spec).packed)
        return taking_turns(units, self.corpora.weights)
