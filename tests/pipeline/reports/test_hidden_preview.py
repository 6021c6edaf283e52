"""The ids that ``pipeline inspect`` shows of hidden states are those of the whole distribution."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import cache_format
from cache_format.writer import CacheWriter
from pipeline.reports import hidden_preview
from pipeline.reports.inspection import summarise, summary_text
from pipeline.reports.row_view import decode_row, row_text
from tests.support.sample_cache import (
    ROWS_OF_UNIT,
    fill,
    hidden_targets,
    sample_shared,
    sample_spec,
    write_sample_cache,
)
from tests.support.student_caches import TARGETS, write_cache, write_embedding


@pytest.mark.parametrize("block", [7, 40, 8192])
def test_the_likeliest_ids_are_those_of_the_softmax_over_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(hidden_preview, "_BLOCK", block)
    cache = write_cache(tmp_path / "cache", TARGETS["hidden"])
    head = load_file(tmp_path / "cache/teacher/embedding.safetensors")["embedding"].numpy()[:40]
    _, row = cache.read_row("train", 1, with_sketch=False)
    assert row.coefficients is not None
    states = cache.tables.hidden_transform.states(row.coefficients)
    decoded = decode_row(tmp_path / "cache", "train", 1)
    weights = np.exp(states.astype(np.float64) @ head.T.astype(np.float64))
    probabilities = weights / weights.sum(1, keepdims=True)
    for position, p, is_scored in zip(
        decoded["positions"], probabilities, row.scored(), strict=True
    ):
        assert position["is_scored"] == is_scored
        if not is_scored:
            assert "kept" not in position
            continue
        expected = np.argsort(-p, kind="stable")[:5]
        assert [one["id"] for one in position["kept"]] == expected.tolist()
        assert [one["p"] for one in position["kept"]] == pytest.approx(p[expected].tolist())
        assert position["p_next"] == pytest.approx(p[position["next"]["id"]])
        assert "tail_mass" not in position
    json.dumps(decoded)
    shown = decoded["positions"][0]["kept"][0]
    assert f"{shown['text']!r} {shown['p']:.3f}" in row_text(decoded).splitlines()[2]


def test_a_head_in_bfloat16_is_read(tmp_path: Path) -> None:
    spec = sample_spec(targets=hidden_targets())
    writer = CacheWriter.create_or_open(tmp_path / "cache", spec, sample_shared(spec))

    def write_half(directory: Path) -> None:
        write_embedding(directory)
        file = directory / "embedding.safetensors"
        save_file({"embedding": load_file(file)["embedding"].to(torch.bfloat16)}, file)

    writer.write_attachments(write_half)
    fill(writer, sorted(ROWS_OF_UNIT))
    writer.publish_manifest(num_tokens_requested=120, complete=True)
    (first, *_) = decode_row(tmp_path / "cache", "train", 0)["positions"]
    assert 0 < sum(one["p"] for one in first["kept"]) <= 1


def test_without_a_head_coefficients_are_counted(tmp_path: Path) -> None:
    write_sample_cache(tmp_path / "cache", sample_spec(targets=hidden_targets()))
    decoded = decode_row(tmp_path / "cache", "train", 0)
    _, row = cache_format.open(tmp_path / "cache").read_row("train", 0, with_sketch=False)
    assert row.coefficients is not None
    for t, position in enumerate(decoded["positions"]):
        assert "kept" not in position
        if position["is_scored"]:
            num_nonzero = np.count_nonzero(row.coefficients[t])
            assert position["num_nonzero"] == num_nonzero
            line = row_text(decoded).splitlines()[2 + t]
            assert line.endswith(f"–        –  {num_nonzero} coefficients that are not 0")


def test_the_summary_says_what_rounding_loses(tmp_path: Path) -> None:
    write_sample_cache(tmp_path / "cache", sample_spec(targets=hidden_targets()))
    text = summary_text(summarise(tmp_path / "cache"))
    assert "of 6 coefficients that are not 0; KL to the teacher's own, nats: 0.050 at T = 1" in text
    assert "\n    hidden " in text
    assert "perplexity" not in text
