"""Integers beyond 64 bits are named, wherever they are."""

import pytest

from cache_format.metadata.int64 import require_int64


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63), 0, True, 1e300, "9" * 30, None])
def test_numbers_within_64_bits_and_other_values_pass(number: object) -> None:
    require_int64({"a": number, "b": {"c": [number]}})


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1])
def test_the_first_integer_beyond_64_bits_is_named(number: int) -> None:
    for fields, place in (
        ({"a": 1, "b": number, "c": number}, "b"),
        ({"a": {"b": (1, number)}}, r"a\.b\[1\]"),
    ):
        with pytest.raises(ValueError, match=f"^{place}: must be an integer of 64 bits, from "):
            require_int64(fields)
