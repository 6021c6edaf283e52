"""``pipeline inspect --row`` against what the reader gives."""

import json
from pathlib import Path

import numpy as np
import pytest

import cache_format
from pipeline.reports.row_view import decode_row, row_text
from tests.support.context_rows import CONTEXT, write_context_cache
from tests.support.sample_cache import drawn_targets, sample_spec, write_sample_cache


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_decoded_row_equals_the_row_that_the_reader_gives(tiny_cache: Path, split: str) -> None:
    cache = cache_format.open(tiny_cache)
    num_unscored = 0
    for index in range(cache.num_rows(split)):  # type: ignore[arg-type]
        decoded = decode_row(tiny_cache, split, index)  # type: ignore[arg-type]
        unit, row = cache.read_row(split, index)  # type: ignore[arg-type]
        assert decoded["unit"] == unit
        assert decoded["document_starts"] == [0, *row.document_starts]
        ids = [position["token"]["id"] for position in decoded["positions"]]
        assert [*ids, decoded["positions"][-1]["next"]["id"]] == row.token_ids.tolist()
        for position, is_scored in zip(decoded["positions"], row.scored(), strict=True):
            assert position["is_scored"] == is_scored
            num_unscored += not is_scored
            if is_scored:
                check_distribution(position)
    assert num_unscored > 0


def check_distribution(position: dict[str, object]) -> None:
    """Probabilities fall, stay below one with the tail, and meet that of the next token."""
    kept: list[dict[str, float]] = position["kept"]  # type: ignore[assignment]
    following: dict[str, int] = position["next"]  # type: ignore[assignment]
    p = [entry["p"] for entry in kept]
    assert len(p) == 5
    assert p == sorted(p, reverse=True)
    assert sum(p) + position["tail_mass"] <= 1 + 1e-9  # type: ignore[operator]
    for entry in kept:
        if entry["id"] == following["id"]:
            assert entry["p"] == pytest.approx(position["p_next"], rel=0.07)  # 1/16 nat


def test_row_text_has_one_line_a_position(tiny_cache: Path) -> None:
    decoded = decode_row(tiny_cache, "train", 0)
    lines = row_text(decoded).splitlines()
    assert len(lines) == 2 + len(decoded["positions"])
    first = decoded["positions"][0]
    assert repr(first["token"]["text"]) in lines[2]
    assert f"{first['kept'][0]['p']:.3f}" in lines[2]
    json.dumps(decoded)


def test_token_texts_are_decoded_by_the_tokenizer(tiny_cache: Path) -> None:
    decoded = decode_row(tiny_cache, "train", 0)
    text = "".join(position["token"]["text"] for position in decoded["positions"])
    assert " the" in text or " a" in text  # words of the corpus, blanks in front


def test_a_row_out_of_range_is_refused(tiny_cache: Path) -> None:
    num_rows = cache_format.open(tiny_cache).num_rows("train")
    with pytest.raises(ValueError, match=f"no row {num_rows}: train has {num_rows} rows"):
        decode_row(tiny_cache, "train", num_rows)


def test_a_decoded_row_shows_its_tail_samples(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    write_sample_cache(cache, sample_spec(targets=drawn_targets()))
    decoded = decode_row(cache, "train", 0)
    _, row = cache_format.open(cache).read_row("train", 0)
    assert row.kept.draws is not None
    ends = np.cumsum(row.kept.draws.num_ids, dtype=np.int64)
    for t, position in enumerate(decoded["positions"]):
        if not position["is_scored"]:
            assert "drawn" not in position
            continue
        assert position["num_drawn"] == row.kept.draws.num_ids[t]
        first = ends[t] - row.kept.draws.num_ids[t]
        drawn = slice(first, min(first + 5, ends[t]))
        assert [one["id"] for one in position["drawn"]] == row.kept.draws.ids[drawn].tolist()
        assert [one["count"] for one in position["drawn"]] == row.kept.draws.counts[drawn].tolist()
    first = decoded["positions"][0]
    assert f"  and {first['num_drawn']} drawn: '#{first['drawn'][0]['id']}' ×" in row_text(decoded)
    json.dumps(decoded)


def test_context_is_named_where_no_targets_are(tmp_path: Path) -> None:
    write_context_cache(tmp_path, sample_spec())
    decoded = decode_row(tmp_path, "train", 0)
    lines = row_text(decoded).splitlines()[2:]
    _, row = cache_format.open(tmp_path).read_row("train", 0)
    for t, (position, line) in enumerate(zip(decoded["positions"], lines, strict=True)):
        is_context = t in range(12)[CONTEXT]
        assert position["is_context"] == is_context
        assert position["is_scored"] == row.scored()[t]
        assert ("p_next" in position) == ("kept" in position) == row.scored()[t]
        assert (
            line.endswith("–        –  the next token is context, not to be learned") == is_context
        )
        begins = t + 1 in row.document_starts and not is_context
        assert line.endswith("–        –  the next token begins another document") == begins
    json.dumps(decoded)
