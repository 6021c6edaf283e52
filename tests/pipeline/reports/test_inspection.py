"""``pipeline inspect`` against what the reader gives, computed here in another way."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cache_format
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.spec_parts.targets import TargetSpec
from pipeline.reports.inspection import _teacher_figures, summarise, summary_text
from pipeline.reports.row_view import decode_row, row_text
from tests.support.sample_cache import (
    drawn_targets,
    pca_sketch,
    reseal,
    sample_spec,
    sampled_targets,
    write_sample_cache,
)


def test_summary_agrees_with_the_rows(tiny_cache: Path) -> None:
    summary = summarise(tiny_cache)
    cache = cache_format.open(tiny_cache)
    logprobs, num_kept, kept_mass = [], [], []
    num_tokens = {"train": 0, "validation": 0}
    for split in ("train", "validation"):
        for _, row in cache.iter_rows(split):
            scored = row.scored()
            num_tokens[split] += len(scored)
            logprobs.append(row.kept.next_logprob[scored])
            num_kept.append(row.kept.num_ids[scored])
            positions = np.repeat(np.arange(len(scored)), row.kept.num_ids)
            kept = np.zeros(len(scored))
            np.add.at(kept, positions, np.exp(-row.kept.gaps.astype(float)))
            tail = np.exp(row.kept.tail_log_mass[:, -1].astype(float))
            kept_mass.append((kept / (kept + tail))[scored])
    figures = summary["teacher"]
    assert summary["num_tokens"] == num_tokens
    assert figures["num_scored"] == len(np.concatenate(logprobs))
    # Stored figures are rounded (float16, 1/16 nat); the sums were taken before rounding.
    mean = np.concatenate(logprobs).mean(dtype=float)
    assert figures["loss"] == pytest.approx(-mean, abs=2e-3)
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
    assert figures["mean_num_kept"] == pytest.approx(np.concatenate(num_kept).mean())
    assert figures["mean_kept_mass"] == pytest.approx(np.concatenate(kept_mass).mean(), abs=5e-3)


def test_summary_counts_every_byte(tiny_cache: Path) -> None:
    summary = summarise(tiny_cache)
    sizes = dict(summary["bytes_per_token"])
    total = sizes.pop("(all)")
    on_disk = sum(path.stat().st_size for path in (tiny_cache / "shards").iterdir())
    assert summary["num_bytes"] == on_disk
    assert sum(sizes.values()) == pytest.approx(total)
    assert total * sum(summary["num_tokens"].values()) == pytest.approx(on_disk)
    assert {"kept", "tail_log_mass", "next_logprob"} <= sizes.keys()


def test_summary_text_names_what_matters(tiny_cache: Path) -> None:
    summary = summarise(tiny_cache)
    text = summary_text(summary)
    assert ": complete" in text
    assert summary["cache_id"] in text
    assert f"perplexity {summary['teacher']['perplexity']:.2f}" in text
    assert re.search(r"^    targets\.kept\.top_k +12$", text, re.MULTILINE)
    tokens = summary["num_tokens"]
    share = f"{tokens['validation'] / sum(tokens.values()):.1%}"
    assert f"{tokens['train']:,} train, {tokens['validation']:,} validation ({share})" in text
    json.dumps(summary)


def test_an_unfinished_cache_can_be_inspected(tmp_path: Path, tiny_cache: Path) -> None:
    unfinished = copy_without(tiny_cache, tmp_path / "cache", "manifest.json")
    assert summary_text(summarise(unfinished)).startswith(f"{unfinished}: NOT COMPLETE")


def test_a_cache_of_a_unit_range_is_called_a_part(tmp_path: Path, tiny_cache: Path) -> None:
    receipt = min((tiny_cache / "receipts").glob("0*.json")).relative_to(tiny_cache)
    part = copy_without(tiny_cache, tmp_path / "cache", "manifest.json", str(receipt))
    summary = summarise(part)
    ((first, end),) = summary["units"]
    assert first == 1
    assert f"NOT COMPLETE: units 1:{end}, as in a part" in summary_text(summary)


def test_impossible_numbers_are_named(tmp_path: Path) -> None:
    write_sample_cache(tmp_path)
    assert summarise(tmp_path)["warnings"] == []
    assert "WARNING" not in summary_text(summarise(tmp_path))

    def change(fields: dict[str, Any]) -> None:
        fields.update(num_dropped_tokens=-7, num_bytes=2**62)
        fields["statistics"]["num_scored"] = 2**40

    reseal(tmp_path / "receipts/00001.json", change)
    (tmp_path / "manifest.json").unlink()
    summary = summarise(tmp_path)
    text = summary_text(summary)
    assert "receipts/00001.json: num_dropped_tokens is -7, expected 0 to 12" in text
    assert "receipts/00001.json: num_bytes is 4,611,686,018,427,387,904, expected 0 to " in text
    assert "receipts/00001.json: statistics.num_scored is 1,099,511,627,776, expected 0 to" in text
    assert text.index("WARNING") < text.index("tokens dropped")
    assert any("but shards/00001-" in warning for warning in summary["warnings"])


def test_a_perplexity_beyond_float64_is_shown_as_inf(tiny_cache: Path) -> None:
    cache = cache_format.open(tiny_cache)
    entry = cache.manifest.shards[0]
    sums = entry.statistics.sums | {"next_logprob": -1e4}
    statistics = replace(entry.statistics, num_scored=1, sums=sums)
    summary = summarise(tiny_cache)
    summary["teacher"] = _teacher_figures((replace(entry, statistics=statistics),), cache.spec)
    assert summary["teacher"]["perplexity"] is None
    assert "perplexity inf (loss 10000.0000 nats)" in summary_text(summary)


def test_teacher_and_corpus_are_named_as_in_the_recipe(tmp_path: Path, tiny_cache: Path) -> None:
    cache = copy_without(tiny_cache, tmp_path / "cache")
    recipe = '[cache_teacher]\nteacher = "models/\\u001bmine"\ncorpus = "data/web.parquet"\n'
    (cache / "recipe.toml").write_text(recipe)
    text = summary_text(summarise(cache))
    assert r"  teacher     local 'models/\x1bmine' (weights " in text
    assert "  corpus      local 'data/web.parquet'" in text


@pytest.mark.parametrize("recipe", [b"[cache_teacher]\nof_tomorrow = 1\n", b"\xff", None])
def test_a_missing_or_unreadable_recipe_is_left_out_of_the_summary(
    tmp_path: Path, tiny_cache: Path, recipe: bytes | None
) -> None:
    cache = copy_without(tiny_cache, tmp_path / "cache")
    (cache / "recipe.toml").unlink(missing_ok=True)
    if recipe is not None:
        (cache / "recipe.toml").write_bytes(recipe)
    summary = summarise(cache)
    assert summary["recipe"] is None
    assert "  corpus      local" in summary_text(summary)


def test_a_cache_without_shards_can_be_inspected(tmp_path: Path, tiny_cache: Path) -> None:
    names = [
        f"{directory}/{p.name}"
        for directory in ("shards", "receipts")
        for p in (tiny_cache / directory).iterdir()
    ]
    empty = copy_without(tiny_cache, tmp_path / "cache", "manifest.json", *names)
    summary = summarise(empty)
    assert summary["teacher"] is None
    assert "perplexity" not in summary_text(summary)


def copy_without(cache: Path, target: Path, *names: str) -> Path:
    import shutil

    shutil.copytree(cache, target)
    for name in names:
        (target / name).unlink()
    return target


def of_spec(path: Path, spec: CacheSpec) -> Path:
    write_sample_cache(path, spec)
    return path


def test_the_summary_counts_tail_samples(tmp_path: Path) -> None:
    spec = sample_spec(targets=drawn_targets(), sketch=pca_sketch(hidden_states="layers:1,2"))
    cache = of_spec(tmp_path / "cache", spec)
    summary = summarise(cache)
    rows = [
        row
        for split in ("train", "validation")
        for _, row in cache_format.open(cache).iter_rows(split)
    ]
    num_scored = sum(int(row.scored().sum()) for row in rows)
    num_drawn = sum(len(row.kept.draws.ids) for row in rows if row.kept.draws is not None)
    assert summary["teacher"]["mean_num_drawn"] == pytest.approx(num_drawn / num_scored)
    assert summary["format_version"] == "2.0"
    text = summary_text(summary)
    assert f"{num_drawn / num_scored:.1f} others, from 9 draws at temperature 2" in text
    for setting, value in (
        ("targets.draws.num_draws", "9"),
        ("sketch.hidden_states", "layers:1,2"),
    ):
        assert re.search(rf"^    {re.escape(setting)} +{value}$", text, re.MULTILINE)
    assert "    drawn " in text  # its bytes


def test_a_kind_of_target_may_tell_neither_loss_nor_probabilities(tmp_path: Path) -> None:
    cache = of_spec(tmp_path / "cache", sample_spec())
    summary, decoded = summarise(cache), decode_row(cache, "train", 0)
    for name in ("loss", "perplexity"):
        del summary["teacher"][name]
    text = summary_text(summary)
    assert f"  teacher     {summary['teacher']['num_scored']:,} scored positions (" in text
    assert "nats" not in text
    for position in decoded["positions"]:
        for name in ("p_next", "tail_mass", "kept"):
            position.pop(name, None)
    assert row_text(decoded).count("       –        –") == len(decoded["positions"])


@pytest.mark.parametrize(
    ("targets", "parts"),
    [
        (sample_spec().targets, {"kept"}),
        (sampled_targets(), {"draws"}),
        (drawn_targets(), {"kept", "draws"}),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_the_summary_lists_every_leaf_of_the_spec(
    tmp_path: Path, targets: TargetSpec, parts: set[str]
) -> None:
    spec = sample_spec(targets=targets)
    lines = summary_text(summarise(of_spec(tmp_path / "cache", spec))).splitlines()
    leaves = [line.split() for line in lines[lines.index("  spec") + 1 :]]
    found = {name: " ".join(value) for name, *value in leaves}
    assert found["corpus.files"] == "2 files (--json lists them)"
    assert found["ranks_sha256"] == spec.ranks_sha256
    assert found["validation_split"] == "units"
    assert {name.split(".")[1] for name in found if name.startswith("targets.")} == {
        *("kind", "log_step"),
        *parts,
    }
    # Names and values are two columns.
    shown = [line for line in lines[-len(leaves) :] if len(line.split()) > 1]
    columns = {len(line) - len(line.split(maxsplit=1)[1]) for line in shown}
    assert columns == {4 + max(map(len, found)) + 1}


def test_the_summary_of_samples_names_their_number_and_temperature(tmp_path: Path) -> None:
    targets = sampled_targets(inverse_temperature=0.5)
    cache = of_spec(tmp_path / "cache", sample_spec(targets=targets))
    text = summary_text(summarise(cache))
    assert "ids per position, from 50 draws at temperature 2" in text
    assert "of the mass" not in text
    position = next(p for p in decode_row(cache, "train", 0)["positions"] if p["is_scored"])
    shares = [entry["p"] * 50 for entry in position["kept"]]
    assert shares == pytest.approx(np.rint(shares), abs=1e-4)
    assert "drawn" not in position
