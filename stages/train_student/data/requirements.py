"""Does the cache hold what the recipe asks for?

In: stage two's settings and an open cache.
"""

from cache_format.errors import AdvisedError, NextStep
from cache_format.metadata.spec import TargetSpec
from cache_format.reader import Cache
from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.temperatures import covers


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
    hottest, coldest = 1 / targets.inverse_temperatures[0], 1 / targets.inverse_temperatures[-1]
    for key in ("temperature_start", "temperature_end"):
        asked = getattr(config, key)
        if covers(targets.inverse_temperatures, asked):
            continue
        if targets.kind == "sampled":
            raise AdvisedError(
                f"train_student.{key}: the cache holds samples that were drawn at temperature "
                f"{hottest:g} and are valid at no other, but the recipe asks for {asked:g}.",
                NextStep(
                    f"Set temperature_start and temperature_end to {hottest!r}, or make a cache "
                    "with cache_teacher.targets 'top_k' or 'top_k+sampled'.",
                    settings={
                        "train_student.temperature_start": hottest,
                        "train_student.temperature_end": hottest,
                    },
                ),
            )
        raise ValueError(
            f"train_student.{key}: the cache holds temperatures from {coldest:g} to {hottest:g}, "
            f"the recipe asks for {asked:g}. Change it, or make a cache with more "
            "cache_teacher.inverse_temperatures."
        )
