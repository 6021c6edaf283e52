"""Sealed files: what they hold comes back, and no bit of them can change unnoticed."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from cache_format.errors import CorruptFileError, UnsupportedFormatError
from cache_format.metadata import sealed_json

FIELDS = {"format_version": "2.0", "b": [1, 2.5, None], "a": {"text": "naïve"}}
PATH = Path("some/file.json")


def test_sealed_fields_round_trip() -> None:
    data = sealed_json.seal(FIELDS)
    assert data.isascii()
    assert data.endswith(b'"\n}\n')
    assert sealed_json.unseal(data, PATH, "") == FIELDS


def test_every_flipped_bit_of_a_sealed_file_is_detected() -> None:
    data = sealed_json.seal(FIELDS)
    for position in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            with pytest.raises(
                (CorruptFileError, UnsupportedFormatError), match=r"some/file\.json"
            ):
                sealed_json.unseal(bytes(flipped), PATH, "Do this.")


def test_every_truncation_of_a_sealed_file_is_detected() -> None:
    data = sealed_json.seal(FIELDS)
    for length in range(len(data)):
        with pytest.raises(CorruptFileError, match=r"file\.json: damaged.* Do this\."):
            sealed_json.unseal(data[:length], PATH, "Do this.")


@pytest.mark.parametrize("version", ["0.9", "1.2", "3.0", "20.0"])
def test_another_major_version_is_refused_by_number(version: str) -> None:
    for data in (
        sealed_json.seal(FIELDS | {"format_version": version}),
        b'{"format_version": "' + version.encode() + b'", "sealed": "in another way"}',
    ):
        with pytest.raises(UnsupportedFormatError, match=f"format version {version}, .* 2.x"):
            sealed_json.unseal(data, PATH, "")


def test_a_later_minor_version_is_read() -> None:
    later = FIELDS | {"format_version": "2.7"}
    assert sealed_json.unseal(sealed_json.seal(later), PATH, "") == later


def test_a_sealed_file_of_no_format_is_refused() -> None:
    with pytest.raises(CorruptFileError, match="holds no format_version"):
        sealed_json.unseal(sealed_json.seal({"a": 1}), PATH, "")


def test_canonical_json_is_sorted_ascii_without_nan() -> None:
    assert (
        sealed_json.canonical_json({"b": [1.0, "é"], "a": None})
        == b'{"a":null,"b":[1.0,"\\u00e9"]}'
    )
    with pytest.raises(ValueError, match="not JSON compliant"):
        sealed_json.canonical_json(float("nan"))


@pytest.mark.parametrize(
    ("hint", "value", "message"),
    [
        (tuple[int, str], [1], r"x: expected tuple"),
        (tuple[int, ...], [1, "2"], r"x\[1\]: expected int, found '2'"),
        (dict[str, int], {"k": None}, r"x.k: expected int, found None"),
        (str | None, 1, "x: expected str, found 1"),
        (float, "1", "x: expected float"),
    ],
)
def test_from_plain_names_the_place_of_a_wrong_value(
    hint: object, value: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sealed_json.from_plain(hint, value, "x")


def test_from_plain_converts_nested_types() -> None:
    assert sealed_json.from_plain(str | None, None) is None
    assert sealed_json.from_plain(tuple[float, ...], [1, 2.5]) == (1.0, 2.5)
    assert sealed_json.from_plain(dict[str, tuple[int, str]], {"k": [1, "a"]}) == {"k": (1, "a")}


@dataclass(frozen=True, kw_only=True)
class _WithNewFields:
    old: int | None
    new: float | None = None


def test_a_field_at_its_default_of_none_is_left_out() -> None:
    assert sealed_json.to_plain(_WithNewFields(old=None)) == {"old": None}
    assert sealed_json.to_plain(_WithNewFields(old=1, new=2.0)) == {"old": 1, "new": 2.0}
    for value in (_WithNewFields(old=None), _WithNewFields(old=3, new=0.5)):
        assert sealed_json.from_plain(_WithNewFields, sealed_json.to_plain(value)) == value
    with pytest.raises(ValueError, match="old: missing"):
        sealed_json.from_plain(_WithNewFields, {"new": 1.0})


def test_an_explicit_null_for_an_omitted_field_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x\.new: expected float, found None"):
        sealed_json.from_plain(_WithNewFields, {"old": None, "new": None}, "x")


def test_integers_in_an_optional_float_field_become_floats() -> None:
    written = sealed_json.canonical_json(sealed_json.to_plain(_WithNewFields(old=1, new=1)))
    assert written == b'{"new":1.0,"old":1}'


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**400])
def test_numbers_beyond_64_bits_are_refused(number: int) -> None:
    for hint in (int, float, dict[str, int]):
        value = {"a": number} if hint not in (int, float) else number
        with pytest.raises(ValueError, match=r"field.*: expected a number of 64 bits"):
            sealed_json.from_plain(hint, value, "field")
    assert sealed_json.from_plain(int, 2**63 - 1, "field") == 2**63 - 1
    assert sealed_json.from_plain(float, -(2**63), "field") == -(2.0**63)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**400])
def test_fields_that_could_not_be_read_back_are_not_sealed(number: int) -> None:
    for fields, place in (
        ({"a": number}, "a"),
        ({"a": {"b": [1, (number,)]}}, r"a\.b\[1\]\[0\]"),
    ):
        with pytest.raises(ValueError, match=f"^{place}: must be an integer of 64 bits"):
            sealed_json.seal(fields)
    sealed_json.seal({"a": [2**63 - 1, -(2**63), 1e300, True, None]})


@pytest.mark.parametrize("body", [b'{"a": 1, "a": 2', b'{"a": NaN', b'{"a": ' + b"[" * 99_999])
def test_a_sealed_file_of_ambiguous_json_is_refused(body: bytes) -> None:
    """Whoever writes a file can seal it."""
    digest = hashlib.sha256(body).hexdigest().encode()
    data = body + b',\n "seal": "' + digest + b'"\n}\n'
    with pytest.raises(CorruptFileError, match=r"file\.json: .* Do this\."):
        sealed_json.unseal(data, PATH, "Do this.")
