"""Check that the cache contains what the recipe needs.

In: stage two's settings, what their loss needs, and an open cache.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from cache_format.reader import Cache
from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.temperatures import require_temperature


@dataclass(frozen=True, kw_only=True)
class CacheNeeds:
    """What a run's loss is computed from, beside the rows and their labels."""

    temperatures: Mapping[str, float]
    """The teacher's distribution at the temperatures of these settings; none: it is not needed."""
    hidden_states_for: tuple[str, ...]
    """The settings whose term needs the teacher's hidden states; none: they are not needed."""
    coded_states_for: tuple[str, ...] = ()
    """The settings whose term needs the states that the teacher's head is applied to."""
    layers_for: tuple[str, ...] = ()
    """The settings whose term needs states of single layers of the teacher."""

    @property
    def reads_sketch(self) -> bool:
        """Whether rows are read with their projected hidden states."""
        return bool(self.hidden_states_for or self.layers_for)


def require_targets(
    config: TrainStudentConfig, cache: Cache, needs: CacheNeeds, *, online: bool = False
) -> None:
    """Raise ValueError where ``cache`` does not hold what ``config`` and its loss need.

    ``online``: a teacher is asked for targets and hidden states, the cache for its rows alone.
    """
    if cache.num_rows("validation") == 0:
        raise ValueError(f"{cache.path}: no validation rows. Cache more tokens.")
    if not any(shard.statistics.num_scored for shard in cache.shards("train")):
        raise ValueError(
            f"{cache.path}: no position of its training rows is scored: there is nothing to learn."
        )
    if online:
        if config.objective == "alignment":
            raise ValueError(
                "train_student.objective: an alignment takes the teacher's layers from the "
                "student's own copies of them. Train it without a teacher in the loop."
            )
        if config.sampled_softmax_size is not None:
            raise ValueError(
                "train_student.sampled_softmax_size: with a teacher in the loop, the loss needs "
                "all logits of teacher and student. Set it to none."
            )
        if needs.layers_for:
            raise ValueError(
                f"train_student.{needs.layers_for[0]}: a teacher in the loop does not give its "
                "single layers. Set it to 0, or train from the cache alone."
            )
        return
    if config.sampled_softmax_size is not None and cache.spec.targets.kind == "hidden":
        raise ValueError(
            "train_student.sampled_softmax_size: the cache holds hidden states alone "
            "(cache_teacher.targets is 'hidden'), which do not say what the teacher's likeliest "
            "ids are: the loss makes all logits. Set it to none, or make a cache with "
            "cache_teacher.targets 'top_k+hidden'."
        )
    if needs.temperatures and cache.spec.targets.moment is not None and config.student.train_head:
        raise ValueError(
            "train_student.student.train_head: the cache holds the moments of its teacher's tails "
            f"(cache_teacher.tail_moment_dim is {cache.spec.targets.moment.dim}), which only say "
            "something to a student with a frozen copy of the teacher's head. Set it to false, or "
            "make a cache with cache_teacher.tail_moment_dim 0."
        )
    for key, asked in needs.temperatures.items():
        require_temperature(cache.spec.targets, key, asked)
    if needs.coded_states_for and cache.spec.targets.hidden is None:
        raise ValueError(
            f"train_student.{needs.coded_states_for[0]}: the cache does not hold the states that "
            f"its teacher's head is applied to (cache_teacher.targets is "
            f"{cache.spec.targets.kind!r}). Set it to 0, or make a cache with "
            "cache_teacher.targets 'hidden' or 'top_k+hidden'."
        )
    if needs.layers_for:
        _require_single_layers(cache, needs.layers_for[0])
    if needs.hidden_states_for and cache.spec.sketch.kind == "none":
        settings = " and ".join(needs.hidden_states_for)
        raise ValueError(
            f"train_student.{needs.hidden_states_for[0]}: the cache holds no hidden states "
            f"(cache_teacher.hidden_projection is 'none'). Set {settings} to 0, or "
            "make a cache with them."
        )
    if needs.hidden_states_for and cache.spec.sketch.num_states > 1:
        raise ValueError(
            f"train_student.{needs.hidden_states_for[0]}: the cache holds several layers, each by "
            f"itself (hidden_states is {cache.spec.sketch.hidden_states!r}), but this term takes "
            f"one hidden state. Set {' and '.join(needs.hidden_states_for)} to 0, or make a cache "
            "with their mean ('layers:…')."
        )


def _require_single_layers(cache: Cache, key: str) -> None:
    """Raise ValueError where ``cache`` does not hold layers of the teacher, each by itself."""
    sketch = cache.spec.sketch
    if sketch.kind != "none" and sketch.hidden_states.startswith("each:"):
        return
    found = f"hidden_states is {sketch.hidden_states!r}"
    if sketch.kind == "none":
        found = "hidden_projection is 'none'"
    raise ValueError(
        f"train_student.{key}: the cache does not hold layers of its teacher, each by itself "
        f"(cache_teacher.{found}). Set it to 0, or make a cache with cache_teacher.hidden_states "
        "such as 'each:7,14,21', and a hidden_projection that is not 'none'."
    )
