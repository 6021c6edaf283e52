"""What receipts sum up, added up again."""

import math

from cache_format.codec.targets.kind import total_sums


def test_sums_are_added_by_name() -> None:
    sums = [{"a": 0.1, "b": 2.0}, {"a": 0.2, "b": 3.0}, {"a": 0.3, "b": 0.0, "later": 9.0}]
    assert total_sums(sums, ["a", "b"]) == {"a": math.fsum([0.1, 0.2, 0.3]), "b": 5.0}


def test_sums_that_a_receipt_lacks_are_no_number() -> None:
    assert math.isnan(total_sums([{"a": 1.0}, {}], ["a"])["a"])


def test_sums_beyond_floats_are_infinite() -> None:
    assert total_sums([{"a": 1e308}, {"a": 1e308}], ["a"]) == {"a": math.inf}
