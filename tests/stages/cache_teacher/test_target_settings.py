"""What settings become for each kind of target, and what each kind refuses."""

from typing import Any

import pytest

from cache_format.metadata.spec_parts.targets import TargetSpec
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.target_settings import SETTINGS_OF_KINDS


def spec_of(**settings: Any) -> TargetSpec:
    config = CacheTeacherConfig(**settings)
    return SETTINGS_OF_KINDS[config.targets].make_spec(config, "0" * 64)


def test_top_k_targets_have_no_sample_fields() -> None:
    spec = spec_of(top_k=7, top_p=0.5, num_levels=99, num_samples=12)
    assert (spec.kind, spec.top_k, spec.keep_mass, spec.num_levels) == ("top_k", 7, 0.5, 99)
    assert spec.inverse_temperatures == (0.5, 0.625, 0.75, 0.875, 1.0)
    assert spec.num_draws is spec.draw_inverse_temperature is None


def test_samples_have_a_level_for_each_count_and_one_temperature() -> None:
    spec = spec_of(targets="sampled", num_samples=12, top_k=7)
    assert (spec.kind, spec.top_k, spec.num_levels) == ("sampled", 12, 12)
    assert spec.inverse_temperatures == (1.0,)


def test_samples_of_the_tail_are_drawn_at_four_thirds_by_default() -> None:
    spec = spec_of(targets="top_k+sampled", top_k=7, num_samples=12)
    assert (spec.top_k, spec.num_levels, spec.num_draws) == (7, 128, 12)
    assert spec.draw_inverse_temperature == 0.75


@pytest.mark.parametrize("targets", ["sampled", "top_k+sampled"])
def test_a_rounded_sampling_temperature_is_taken_as_the_exact_one(targets: str) -> None:
    spec = spec_of(targets=targets, sampling_temperature=1.3333333333)
    at = spec.draw_inverse_temperature or spec.inverse_temperatures[0]
    assert at == 0.75


@pytest.mark.parametrize("targets", ["sampled", "top_k+sampled"])
@pytest.mark.parametrize("temperature", [0.0, -1.0, 1.9, 4.0])
def test_other_temperatures_are_refused(targets: str, temperature: float) -> None:
    with pytest.raises(ValueError, match="sampling_temperature: must be 1 over one of"):
        spec_of(targets=targets, sampling_temperature=temperature)


@pytest.mark.parametrize(("name", "good", "bad"), [("num_samples", 2, 1), ("top_p", 1.0, 0.9)])
def test_sampled_targets_check_their_own_bounds(name: str, good: Any, bad: Any) -> None:
    spec_of(targets="sampled", **{name: good})
    spec_of(targets="top_k+sampled", **{name: bad})
    with pytest.raises(ValueError, match=f"{name}: must be .* where targets is 'sampled'"):
        spec_of(targets="sampled", **{name: bad})
