"""The transform of hidden states: its file, and what a file may not hold."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache_format.coding import rans
from cache_format.errors import CorruptFileError
from cache_format.metadata import layout
from cache_format.storage.open import storage_at
from cache_format.tables.hidden_transform import transform_from_bytes, transform_num_bytes
from cache_format.tables.shared_files import read_transform, require_shared
from tests.support.sample_cache import (
    hidden_targets,
    sample_shared,
    sample_spec,
    sample_transform,
    write_sample_cache,
)

SPEC = sample_spec(targets=hidden_targets())
DATA = sample_transform().to_bytes()
_NUM_FLOATS = 16 + 2 * 6 * 16


def test_the_file_gives_the_transform_back() -> None:
    given, found = sample_transform(), transform_from_bytes(DATA, SPEC)
    assert len(DATA) == transform_num_bytes(SPEC)
    for name in ("mean", "analysis", "synthesis"):
        np.testing.assert_array_equal(getattr(found, name), getattr(given, name))
    np.testing.assert_array_equal(found.code.limits, given.code.limits)
    np.testing.assert_array_equal(found.code.shares, given.code.shares)
    np.testing.assert_array_equal(found.code.frequencies, given.code.frequencies)
    assert found.code.num_raw_bits == given.code.num_raw_bits
    assert found.sha256 == SPEC.targets.states.transform_sha256


def test_states_are_the_mean_plus_the_weighted_rows_of_the_synthesis() -> None:
    coefficients = np.array([[1, 0, 0, 0, 0, 0], [0, 0, -3, 0, 2, 0]], np.int16)
    transform = sample_transform()
    expected = [
        transform.mean + transform.synthesis[0],
        transform.mean - 3 * transform.synthesis[2] + 2 * transform.synthesis[4],
    ]
    np.testing.assert_allclose(transform.states(coefficients), expected, rtol=1e-6)


@pytest.mark.parametrize("length", [0, len(DATA) - 1, len(DATA) + 1])
def test_a_file_of_another_size_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"expected {len(DATA)} bytes, found {length}"):
        transform_from_bytes((DATA + b"0")[:length], SPEC)


@pytest.mark.parametrize("number", [np.nan, np.inf, -1e19])
@pytest.mark.parametrize("place", [0, 15, 16, _NUM_FLOATS - 1])
def test_numbers_that_no_state_can_be_made_of_are_refused(place: int, number: float) -> None:
    floats = np.frombuffer(DATA, "<f4", _NUM_FLOATS).copy()
    floats[place] = number
    with pytest.raises(ValueError, match=r"transform: expected numbers up to ±1e\+18"):
        transform_from_bytes(floats.tobytes() + DATA[4 * _NUM_FLOATS :], SPEC)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (4 * _NUM_FLOATS, 0, "transform: limits: expected numbers from 1"),
        (4 * _NUM_FLOATS + 6, 0, "transform: frequencies: expected"),
    ],
)
def test_a_code_that_cannot_be_is_refused(offset: int, value: int, message: str) -> None:
    changed = bytearray(DATA)
    changed[offset] = value
    changed[offset + 1 : offset + 2] = b"\0"
    with pytest.raises(ValueError, match=message):
        transform_from_bytes(bytes(changed), SPEC)


def test_limits_that_call_for_another_number_of_symbols_are_refused() -> None:
    fewer = replace(SPEC.targets.states, num_symbols=SPEC.targets.states.num_symbols - 1)
    spec = replace(SPEC, targets=replace(SPEC.targets, hidden=fewer))
    with pytest.raises(ValueError, match="frequencies: expected"):
        transform_from_bytes(DATA[: -4 * rans.NUM_SYMBOLS], spec)


def test_shares_of_another_number_of_classes_are_refused() -> None:
    of_one = replace(SPEC.targets.states, num_classes=1)
    spec = replace(SPEC, targets=replace(SPEC.targets, hidden=of_one))
    num_symbols = SPEC.targets.states.num_symbols
    with pytest.raises(ValueError, match="frequencies: expected 1 classes, found others"):
        transform_from_bytes(DATA[: -2 * rans.NUM_SYMBOLS * num_symbols], spec)


def test_a_writer_needs_the_transform_that_the_spec_names() -> None:
    require_shared(sample_shared(SPEC), SPEC)
    with pytest.raises(ValueError, match=r"expected ranks\.bin, transform\.bin, found ranks\.bin"):
        require_shared(sample_shared(), SPEC)
    other = replace(
        sample_shared(SPEC), transform=replace(sample_transform(), mean=np.ones(16, np.float32))
    )
    with pytest.raises(ValueError, match=r"transform\.bin: not the file that the spec names"):
        require_shared(other, SPEC)


def test_a_flipped_bit_of_the_file_is_named(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    write_sample_cache(root, SPEC)
    changed = bytearray(DATA)
    changed[100] ^= 1
    (root / layout.TRANSFORM).write_bytes(changed)
    with pytest.raises(CorruptFileError, match=r"transform\.bin: damaged: expected SHA-256"):
        read_transform(storage_at(root), SPEC)
