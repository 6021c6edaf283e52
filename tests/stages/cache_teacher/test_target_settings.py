"""What settings become for each kind of target, and what each kind refuses."""

from typing import Any

import pytest

from cache_format.metadata.spec_parts.targets import (
    CodedStates,
    Draws,
    KeptLogits,
    TailMoment,
    TargetSpec,
)
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.target_settings import SETTINGS_OF_KINDS


def spec_of(**settings: Any) -> TargetSpec:
    config = CacheTeacherConfig(**settings)
    return SETTINGS_OF_KINDS[config.targets].make_spec(config)


def test_top_k_targets_have_no_sample_fields() -> None:
    spec = spec_of(top_k=7, top_p=0.5, num_levels=99, num_samples=12)
    kept = KeptLogits(
        top_k=7,
        keep_mass=0.5,
        inverse_temperatures=(0.5, 0.625, 0.75, 0.875, 1.0),
        num_levels=99,
    )
    assert spec == TargetSpec(kind="top_k", kept=kept)


def test_samples_have_a_number_and_a_temperature_alone() -> None:
    spec = spec_of(targets="sampled", num_samples=12, top_k=7, num_levels=99)
    draws = Draws(num_draws=12, inverse_temperature=1.0)
    assert spec == TargetSpec(kind="sampled", draws=draws)


def test_samples_of_the_tail_are_drawn_at_four_thirds_by_default() -> None:
    spec = spec_of(targets="top_k+sampled", top_k=7, num_samples=12)
    assert (spec.logits.top_k, spec.logits.num_levels) == (7, 128)
    assert spec.sampling == Draws(num_draws=12, inverse_temperature=0.75)


def test_hidden_targets_have_their_kl_alone_until_the_transform_is_fitted() -> None:
    hidden = CodedStates(
        max_kl=0.02,
        step=1.0,
        quantization="rate_distortion",
        num_components=1,
        num_symbols=1,
        num_classes=1,
        num_raw_bits=0,
        self_kl=(0.0, 0.0, 0.0),
        transform_sha256="0" * 64,
    )
    assert spec_of(targets="hidden", hidden_kl=0.02, top_k=7) == TargetSpec(
        kind="hidden", hidden=hidden
    )


@pytest.mark.parametrize("kl", [0.0, -0.1, 10.5, float("nan")])
def test_a_kl_that_cannot_be_asked_for_is_refused(kl: float) -> None:
    with pytest.raises(ValueError, match="hidden_kl: must be above 0 and at most 10 nats"):
        spec_of(targets="hidden", hidden_kl=kl)


@pytest.mark.parametrize("targets", ["sampled", "top_k+sampled"])
def test_a_rounded_sampling_temperature_is_taken_as_the_exact_one(targets: str) -> None:
    spec = spec_of(targets=targets, sampling_temperature=1.3333333333)
    assert spec.sampling.inverse_temperature == 0.75


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


@pytest.mark.parametrize("targets", ["top_k", "top_k+sampled"])
def test_moments_have_their_dimension_alone_until_the_basis_is_fitted(targets: str) -> None:
    moment = TailMoment(
        dim=16,
        step=1.0,
        num_components=1,
        num_symbols=1,
        num_classes=1,
        num_raw_bits=0,
        transform_sha256="0" * 64,
    )
    assert spec_of(targets=targets, tail_moment_dim=16).moment == moment
    assert spec_of(targets=targets).moment is None


@pytest.mark.parametrize("targets", ["sampled", "hidden", "top_k+hidden"])
def test_other_kinds_have_no_moments(targets: str) -> None:
    spec_of(targets=targets, tail_moment_dim=0)
    with pytest.raises(ValueError, match="tail_moment_dim: must be 0 unless targets is 'top_k' or"):
        spec_of(targets=targets, tail_moment_dim=1)


@pytest.mark.parametrize(("good", "bad"), [(0, -1), (65_535, 65_536)])
def test_dimensions_of_moments_have_bounds(good: int, bad: int) -> None:
    CacheTeacherConfig(tail_moment_dim=good)
    with pytest.raises(ValueError, match="tail_moment_dim: must be from 0 to 65,535"):
        CacheTeacherConfig(tail_moment_dim=bad)
