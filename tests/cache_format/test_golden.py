"""A cache that an older program wrote still decodes to the same rows, and a new one to them too."""

import json
from pathlib import Path

import cache_format
from tests.cache_format.golden_cache import (
    GOLDEN,
    GOLDEN_ROWS,
    ROWS_OF_UNIT,
    SPEC,
    decoded,
    golden_row,
    write_golden,
)
from tests.cache_format.sample_cache import assert_decoded


def test_the_golden_cache_decodes_to_its_known_rows() -> None:
    assert decoded(GOLDEN) == json.loads(GOLDEN_ROWS.read_text())


def test_the_known_rows_are_what_was_given() -> None:
    rows = {
        split: [row for _, row in cache_format.open(GOLDEN).iter_rows(split)]
        for split in ("train", "validation")
    }
    assert_decoded(rows["train"][0], golden_row(3), SPEC)
    assert len(rows["validation"]) == ROWS_OF_UNIT[0]
    for number, row in enumerate(rows["validation"]):
        assert_decoded(row, golden_row(number), SPEC)


def test_some_known_values() -> None:
    """Worked out by hand from ``golden_row(0)``."""
    _, row = cache_format.open(GOLDEN).read_row("validation", 0)
    assert row.document_starts.tolist() == [2]
    assert row.num_kept.tolist() == [1, 0, 3, 4, 1, 2]
    assert row.kept_ids.tolist()[:4] == [0, 22_006, 22_263, 22_520]
    # rank · (1.3 + 2/7) = 1.5857 and 3.1714, in sixteenths 25.4 and 50.7
    assert row.gaps.tolist()[:4] == [0.0, 0.0, 25 / 16, 51 / 16]
    assert row.tail_log_mass.tolist()[0] == [float("-inf")] * 2
    assert row.tail_log_mass.tolist()[1] == [0.0, 0.0]
    assert row.tail_log_mass.tolist()[2] == [0.25, -2.0]
    assert row.next_logprob.tolist()[2] == -1.0


def test_identity_and_verification() -> None:
    cache = cache_format.open(GOLDEN)
    assert cache.spec == SPEC
    assert cache.cache_id == "4470ba67b0e1662efe4b7b60ad60dc0b4a4914a12af3bbaa589c5dfa52e0a21c"
    assert cache.verify() == []
    assert cache.attachment("config.json").read_text() == "{}\n"


def test_writing_it_again_decodes_to_the_same(tmp_path: Path) -> None:
    """The bytes may differ between versions of zstd; what they decode to may not."""
    write_golden(tmp_path)
    assert decoded(tmp_path) == decoded(GOLDEN)
