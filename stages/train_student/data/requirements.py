"""Does the cache hold what the recipe asks for?

In: stage two's settings and an open cache.
"""

from cache_format.metadata.spec_parts.targets import TargetSpec
from cache_format.reader import Cache
from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.temperatures import require_temperature


def require_targets(config: TrainStudentConfig, cache: Cache, *, online: bool = False) -> None:
    """Raise ValueError where ``config`` asks for what ``cache`` does not hold.

    ``online``: a teacher is asked for targets and hidden states, the cache for its rows alone.
    """
    if cache.num_rows("validation") == 0:
        raise ValueError(f"{cache.path}: no validation rows. Cache more tokens.")
    if online:
        if config.sampled_softmax_size is not None:
            raise ValueError(
                "train_student.sampled_softmax_size: a teacher in the loop gives all of its "
                "logits, and they are compared with all of the student's. Set it to none."
            )
        return
    if max(config.alpha_start, config.alpha_end):
        _require_temperatures(config, cache.spec.targets)
    if max(config.beta_start, config.beta_end) > 0 and cache.spec.sketch.kind == "none":
        raise ValueError(
            "train_student.beta_start: the cache holds no hidden states "
            "(cache_teacher.hidden_projection is 'none'). Set beta_start and beta_end to 0, or "
            "make a cache with them."
        )


def _require_temperatures(config: TrainStudentConfig, targets: TargetSpec) -> None:
    for key in ("temperature_start", "temperature_end"):
        require_temperature(targets, key, getattr(config, key))
