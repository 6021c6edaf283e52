"""The settings that say what is kept of a distribution: what each kind of target allows, and the
part of a cache's spec that they become.

Imports nothing heavy, so that a wrong recipe is refused at once. What is computed for a kind lies
in ``targets/``.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from cache_format.metadata.spec_parts.targets import (
    KL_TEMPERATURES,
    CodedStates,
    Draws,
    KeptLogits,
    Quantization,
    TailMoment,
    TargetSpec,
)


class TargetSettings(Protocol):
    """What is read of ``[cache_teacher]``; see ``CacheTeacherConfig`` for units and meanings."""

    @property
    def top_k(self) -> int: ...
    @property
    def top_p(self) -> float: ...
    @property
    def num_levels(self) -> int: ...
    @property
    def inverse_temperatures(self) -> tuple[float, ...]: ...
    @property
    def num_samples(self) -> int: ...
    @property
    def sampling_temperature(self) -> float | None: ...
    @property
    def hidden_kl(self) -> float: ...
    @property
    def hidden_quantization(self) -> Quantization: ...
    @property
    def tail_moment_dim(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class SettingsOfKind:
    """What one kind of target does with the settings."""

    check: Callable[[TargetSettings], None]
    """Raises ValueError naming a setting that the kind does not allow; bounds that hold for all
    kinds are checked before."""
    make_spec: Callable[[TargetSettings], TargetSpec]


def _top_k_spec(settings: TargetSettings) -> TargetSpec:
    return TargetSpec(kind="top_k", kept=_kept(settings), moment=_moment(settings))


def _kept(settings: TargetSettings) -> KeptLogits:
    return KeptLogits(
        top_k=settings.top_k,
        keep_mass=settings.top_p,
        inverse_temperatures=settings.inverse_temperatures,
        num_levels=settings.num_levels,
    )


def _draws(settings: TargetSettings, default_temperature: float) -> Draws:
    return Draws(
        num_draws=settings.num_samples,
        inverse_temperature=_sampling_node(settings, default_temperature),
    )


_DEFAULT_TEMPERATURE_OF_ALL = 1.0


def _check_sampled(settings: TargetSettings) -> None:
    _require(settings.num_samples >= 2, "num_samples", "2 or more where targets is 'sampled'")
    _require_sampling_temperature(settings, _DEFAULT_TEMPERATURE_OF_ALL)
    _require(settings.top_p == 1.0, "top_p", "1 where targets is 'sampled'")


def _sampled_spec(settings: TargetSettings) -> TargetSpec:
    return TargetSpec(kind="sampled", draws=_draws(settings, _DEFAULT_TEMPERATURE_OF_ALL))


_DEFAULT_TEMPERATURE_OF_TAIL = 4 / 3  # serves all from 1 to 2 nearly as well as the best for each


def _check_top_k_sampled(settings: TargetSettings) -> None:
    _require_sampling_temperature(settings, _DEFAULT_TEMPERATURE_OF_TAIL)


def _top_k_sampled_spec(settings: TargetSettings) -> TargetSpec:
    draws = _draws(settings, _DEFAULT_TEMPERATURE_OF_TAIL)
    return TargetSpec(
        kind="top_k+sampled", kept=_kept(settings), draws=draws, moment=_moment(settings)
    )


NOT_FITTED = "0" * 64
"""The hash of a file that is not made yet."""


def _moment(settings: TargetSettings) -> TailMoment | None:
    """All but ``dim`` is found when the basis is fitted."""
    if not settings.tail_moment_dim:
        return None
    return TailMoment(
        dim=settings.tail_moment_dim,
        step=1.0,
        num_components=1,
        num_symbols=1,
        num_classes=1,
        num_raw_bits=0,
        transform_sha256=NOT_FITTED,
    )


def _states(settings: TargetSettings, quantization: Quantization) -> CodedStates:
    """All but ``max_kl`` and ``quantization`` is found when the transform is fitted."""
    return CodedStates(
        max_kl=settings.hidden_kl,
        step=1.0,
        quantization=quantization,
        num_components=1,
        num_symbols=1,
        num_classes=1,
        num_raw_bits=0,
        self_kl=(0.0,) * len(KL_TEMPERATURES),
        transform_sha256=NOT_FITTED,
    )


def _hidden_spec(settings: TargetSettings) -> TargetSpec:
    return TargetSpec(kind="hidden", hidden=_states(settings, settings.hidden_quantization))


def _top_k_hidden_spec(settings: TargetSettings) -> TargetSpec:
    hidden = _states(settings, "nearest")  # an error costs what the tail weighs, not the whole
    return TargetSpec(kind="top_k+hidden", kept=_kept(settings), hidden=hidden)


SETTINGS_OF_KINDS: Mapping[str, SettingsOfKind] = {
    "top_k": SettingsOfKind(check=lambda _: None, make_spec=_top_k_spec),
    "sampled": SettingsOfKind(check=_check_sampled, make_spec=_sampled_spec),
    "top_k+sampled": SettingsOfKind(check=_check_top_k_sampled, make_spec=_top_k_sampled_spec),
    "hidden": SettingsOfKind(check=lambda _: None, make_spec=_hidden_spec),
    "top_k+hidden": SettingsOfKind(check=lambda _: None, make_spec=_top_k_hidden_spec),
}
"""By the value of ``cache_teacher.targets``."""


def _require_sampling_temperature(settings: TargetSettings, default: float) -> None:
    temperature = _sampling_temperature(settings, default)
    _require(
        temperature > 0
        and any(math.isclose(1 / temperature, node) for node in settings.inverse_temperatures),
        "sampling_temperature",
        "1 over one of inverse_temperatures, such as 2.0 for 0.5",
    )


def _sampling_node(settings: TargetSettings, default: float) -> float:
    """The node 1/T that ids are drawn at: the one of inverse_temperatures that it is but for
    rounding."""
    wanted = 1 / _sampling_temperature(settings, default)
    return next(node for node in settings.inverse_temperatures if math.isclose(node, wanted))


def _sampling_temperature(settings: TargetSettings, default: float) -> float:
    return default if settings.sampling_temperature is None else settings.sampling_temperature


def _require(holds: bool, key: str, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{key}: must be {allowed}")
