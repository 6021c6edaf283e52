"""The moments of the tail: their file and column, and what neither may hold."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import cache_format
from cache_format.codec.row_codec import decode_row, encode_row
from cache_format.errors import CorruptFileError, MissingFileError
from cache_format.metadata import layout
from cache_format.storage.open import storage_at
from cache_format.tables.shared_files import read_moment, require_shared
from cache_format.tables.tail_moment import moment_from_bytes, moment_num_bytes
from cache_format.tools.verify import verify
from tests.support.sample_cache import (
    drawn_targets,
    hidden_targets,
    sample_moment,
    sample_row,
    sample_shared,
    sample_spec,
    sampled_targets,
    shard_path,
    top_k_hidden_targets,
    top_k_targets,
    with_moment,
    write_sample_cache,
)

SPEC = sample_spec(targets=with_moment(top_k_targets()))
SHARED = sample_shared(SPEC)
DATA = sample_moment().to_bytes()
_BASIS = 4 * 2 * 16
_BEFORE = _BASIS + 4 * 3


def test_the_file_gives_basis_center_and_transform_back() -> None:
    given, found = sample_moment(), moment_from_bytes(DATA, SPEC)
    assert len(DATA) == moment_num_bytes(SPEC)
    assert found.to_bytes() == DATA
    np.testing.assert_array_equal(found.basis, given.basis)
    np.testing.assert_array_equal(found.center, given.center)
    np.testing.assert_array_equal(found.transform.synthesis, given.transform.synthesis)
    assert found.sha256 == SPEC.targets.tail_moment.transform_sha256


def test_moments_are_the_mean_plus_the_weighted_rows_of_the_synthesis() -> None:
    moment, coefficients = sample_moment(), np.array([[1, 0, 0, -3, 0]], np.int16)
    synthesis = moment.transform.synthesis
    expected = moment.transform.mean + synthesis[0] - 3 * synthesis[3]
    found = moment.moments(coefficients)
    assert found.shape == (1, 3, 3)
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-6)


@pytest.mark.parametrize("length", [0, len(DATA) - 1, len(DATA) + 1])
def test_a_file_of_another_size_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"expected {len(DATA)} bytes, found {length}"):
        moment_from_bytes((DATA + b"0")[:length], SPEC)


@pytest.mark.parametrize("number", [np.nan, np.inf, -1e19])
@pytest.mark.parametrize("place", [0, _BASIS, _BEFORE, _BEFORE + 36])
def test_numbers_that_no_moment_can_be_made_of_are_refused(place: int, number: float) -> None:
    changed = DATA[:place] + np.float32(number).tobytes() + DATA[place + 4 :]
    with pytest.raises(ValueError, match=r"transform: expected numbers up to ±1e\+18"):
        moment_from_bytes(changed, SPEC)


def test_a_basis_that_is_not_orthonormal_is_refused() -> None:
    longer = replace(sample_moment(), basis=sample_moment().basis * np.float32(1.01))
    with pytest.raises(ValueError, match="expected orthonormal"):
        moment_from_bytes(longer.to_bytes(), SPEC)


def test_a_code_that_cannot_be_is_refused() -> None:
    moment = SPEC.targets.tail_moment
    limits = len(DATA) - 5 - 512 * (1 + moment.num_classes * moment.num_symbols)
    changed = DATA[:limits] + b"\0" + DATA[limits + 1 :]
    with pytest.raises(ValueError, match="transform: limits: expected numbers from 1"):
        moment_from_bytes(changed, SPEC)


def test_a_writer_needs_the_file_that_the_spec_names() -> None:
    require_shared(SHARED, SPEC)
    with pytest.raises(ValueError, match=r"expected ranks\.bin, tail_moment\.bin, found ranks\.b"):
        require_shared(sample_shared(), SPEC)
    other = replace(SHARED, moment=replace(sample_moment(), center=np.ones(3, np.float32)))
    with pytest.raises(ValueError, match=r"tail_moment\.bin: not the file that the spec names"):
        require_shared(other, SPEC)


def test_a_damaged_or_missing_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    write_sample_cache(root, SPEC)
    path, storage = root / layout.MOMENT, storage_at(root)
    path.write_bytes(bytes([DATA[0] ^ 1]) + DATA[1:])
    with pytest.raises(CorruptFileError, match=r"tail_moment\.bin: damaged: exp.*") as caught:
        read_moment(storage, SPEC)
    assert caught.value.next_step == layout.MOMENT_STEP
    (problem,) = verify(cache_format.open(root))
    assert problem.path == path
    path.unlink()
    with pytest.raises(MissingFileError, match=r"tail_moment\.bin: missing\. Restore"):
        cache_format.open(root).read_row("train", 0)


def test_a_file_whose_hash_is_right_but_whose_content_is_not_is_refused(tmp_path: Path) -> None:
    """As a faulty program would write it."""
    write_sample_cache(tmp_path, SPEC)
    zeros = bytes(len(DATA))
    (tmp_path / layout.MOMENT).write_bytes(zeros)
    sha256 = hashlib.sha256(zeros).hexdigest()
    spec = replace(SPEC, targets=with_moment(top_k_targets(), transform_sha256=sha256))
    with pytest.raises(CorruptFileError, match=r"tail_moment\.bin: projection: expected ortho"):
        read_moment(storage_at(tmp_path), spec)


def test_caches_without_moments_have_no_such_file(tmp_path: Path) -> None:
    write_sample_cache(tmp_path)
    assert read_moment(storage_at(tmp_path), sample_spec()) is None
    assert "moment" not in sample_spec().to_json()["targets"]


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        (None, "moment_coefficients: the spec says 'top_k', but the row has none"),
        (np.zeros((12, 4), np.int16), r"moment_coefficients: expected shape \(12, 5\), found"),
        (np.zeros((12, 5), np.int32), "moment_coefficients: expected int16, found int32"),
        (np.full((12, 5), -(2**15), np.int16), "moment_coefficients: expected .* at most ±32767"),
    ],
)
def test_coefficients_that_break_a_rule_are_refused(
    coefficients: np.ndarray | None, message: str
) -> None:
    row = replace(sample_row(0, SPEC), moment_coefficients=coefficients)
    with pytest.raises(ValueError, match=message):
        encode_row(row, SPEC, SHARED)


def test_coefficients_are_refused_where_the_spec_has_none() -> None:
    row = sample_row(0, SPEC)
    with pytest.raises(ValueError, match="moment_coefficients: the spec says 'top_k', but the row"):
        encode_row(row, sample_spec(), sample_shared())


def test_the_other_cells_are_those_of_the_kind_without_moments() -> None:
    row = sample_row(0, SPEC)
    with_it = encode_row(row, SPEC, SHARED)
    without = encode_row(replace(row, moment_coefficients=None), sample_spec(), sample_shared())
    assert [name for name in with_it if name not in without] == ["tail_moment"]
    for name, cell in without.items():
        np.testing.assert_array_equal(with_it[name], cell)


def test_a_damaged_cell_is_refused_by_the_name_of_its_column() -> None:
    row = sample_row(0, SPEC)
    encoded = encode_row(row, SPEC, SHARED)
    cells = {name: cell for name, cell in encoded.items() if isinstance(cell, bytes)}
    for damaged in (b"", cells["tail_moment"][:-1], cells["tail_moment"] + b"\0"):
        with pytest.raises(ValueError, match=r"^tail_moment: expected"):
            decode_row(cells | {"tail_moment": damaged}, row.document_starts, SPEC, SHARED)


def test_a_flipped_bit_of_the_column_is_damage_of_its_shard(tmp_path: Path) -> None:
    write_sample_cache(tmp_path, SPEC)
    row = cache_format.open(tmp_path).read_row("train", 0)[1]
    cell = encode_row(row, SPEC, SHARED)["tail_moment"]
    path = shard_path(tmp_path, 1)
    data = bytearray(path.read_bytes())
    place = bytes(data).index(bytes(cell))
    data[place + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match="damaged"):
        cache_format.open(tmp_path).read_row("train", 0)


@pytest.mark.parametrize("targets", [sampled_targets(), hidden_targets(), top_k_hidden_targets()])
def test_kinds_without_a_mass_alone_for_their_tail_have_no_moments(targets: object) -> None:
    with pytest.raises(ValueError, match="moment: must be left out unless kind is 'top_k' or"):
        with_moment(targets)  # type: ignore[arg-type]
    with_moment(drawn_targets())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, "dim: must be from 1 to 65535, found 0"),
        ({"dim": 65_536}, "dim: must be from 1 to 65535, found 65536"),
        ({"dim": 17}, "targets.moment.dim: must be at most 16 where teacher.hidden_size is 16"),
        ({"step": 0.0}, "step: must be above 0"),
        ({"step": 1e7}, "step: must be above 0"),
        ({"num_components": 0}, "num_components: must be from 1"),
        ({"num_components": 10}, "targets.moment.num_components: must be at most 9 where a"),
        ({"num_symbols": 6}, r"num_symbols: must be from 1 to num_components \(5\)"),
        ({"num_classes": 0}, "num_classes: must be from 1 to 16 where num_symbols is"),
        ({"num_classes": 17}, "num_classes: must be from 1 to 16 where num_symbols is"),
        ({"num_raw_bits": -1}, r"num_raw_bits: must be from 0 to num_components \(5\)"),
        ({"num_raw_bits": 6}, r"num_raw_bits: must be from 0 to num_components \(5\)"),
        ({"transform_sha256": "x"}, "transform_sha256: must be 64 hex digits"),
    ],
)
def test_specs_with_numbers_out_of_bounds_are_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sample_spec(targets=with_moment(top_k_targets(), **changes))


def test_specs_at_the_bounds_are_accepted() -> None:
    for changes in (
        {"dim": 16, "num_components": 51},
        {"num_components": 9, "num_symbols": 9},
        {"num_classes": 1, "num_raw_bits": 0},
        {"num_classes": 16, "num_raw_bits": 5},
    ):
        sample_spec(targets=with_moment(top_k_targets(), **changes))
