"""What stage one refuses: other caches, foreign directories, bad documents, a teacher gone NaN."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import cache_format
from cache_format.errors import ForeignDirectoryError, SpecMismatchError, UnsupportedFormatError
from tests.support.sample_cache import contents, reseal
from tests.support.stage_one_runs import TEXTS, Bench, Watch, rows_by_unit, shard_bytes
from tests.support.tiny import write_fineweb_parquet

OTHER_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "top_k": ({"top_k": 13}, "cache_teacher.top_k"),
    "seed": ({"seed": 1}, "seed"),
    "dtype": ({"teacher_dtype": "bfloat16"}, "cache_teacher.teacher_dtype"),
    "sketch": ({"hidden_projection": "none"}, "cache_teacher.hidden_projection"),
    "units": ({"documents_per_unit": 9}, "cache_teacher.documents_per_unit"),
}


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_a_cache_of_another_recipe_is_refused(bench: Bench, watch: Watch, name: str) -> None:
    bench.run(num_tokens=1)
    before = shard_bytes(bench.root / "cache")
    watch.since()
    changes, field = OTHER_SETTINGS[name]
    with pytest.raises(SpecMismatchError, match=field):
        bench.run(**changes)
    assert watch.since() == (0, 0)  # before any weights are loaded
    assert shard_bytes(bench.root / "cache") == before


def test_a_cache_of_another_major_version_is_refused(bench: Bench, watch: Watch) -> None:
    """One of version 1 is made anew: nothing of it is read or changed."""
    bench.run(num_tokens=1)
    reseal(bench.root / "cache/spec.json", lambda fields: fields.update(format_version="1.4"))
    before = contents(bench.root / "cache")
    watch.since()
    with pytest.raises(UnsupportedFormatError, match=r"spec\.json: .*1\.4"):
        bench.run()
    assert watch.since() == (0, 0)
    assert contents(bench.root / "cache") == before


def test_a_corpus_that_has_changed_is_refused(bench: Bench) -> None:
    bench.run(num_tokens=1)
    write_fineweb_parquet(bench.corpus, TEXTS[1:])
    with pytest.raises(SpecMismatchError, match=r"corpus\.files"):
        bench.run()


def test_a_directory_of_other_files_is_refused_and_unchanged(bench: Bench, watch: Watch) -> None:
    foreign = bench.root / "cache" / "thesis.tex"
    foreign.parent.mkdir()
    foreign.write_text("precious")
    with pytest.raises(ForeignDirectoryError, match=r"thesis\.tex"):
        bench.run()
    assert [path.name for path in foreign.parent.iterdir()] == ["thesis.tex"]
    assert watch.since() == (0, 0)


def spoil(teacher: Path, tmp_path: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    copy = Path(shutil.copytree(teacher, tmp_path / "spoilt"))
    weights = load_file(copy / "model.safetensors")
    edit(weights)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize("sketch", ["rademacher", "none"])
def test_nan_logits_are_refused_naming_unit_and_row(bench: Bench, sketch: str) -> None:
    """One token's embedding is NaN, and attention spreads that over its whole row."""
    bench.run("whole", hidden_projection="none")
    rows = rows_by_unit(bench.open("whole"))
    ids_of_unit = [
        np.stack([row.token_ids for unit, row in rows if unit == wanted]) for wanted in range(8)
    ]
    first = int(np.setdiff1d(ids_of_unit[1][:, :-1], ids_of_unit[0])[0])
    row = np.argwhere(ids_of_unit[1][:, :-1] == first)[0][0]

    def edit(weights: dict[str, torch.Tensor]) -> None:
        # A head of its own stays clean, so that only what the token touches is not finite.
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        weights["model.embed_tokens.weight"][first] = torch.nan

    teacher = spoil(bench.teacher, bench.root, edit)
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    place = f"unit 1, row {row}, position 0: the teacher produced NaN .*teacher_dtype"
    with pytest.raises(ValueError, match=place):
        bench.run(teacher=teacher, hidden_projection=sketch)
    finished = cache_format.open(bench.root / "cache", allow_incomplete=True).manifest.shards
    assert [entry.unit for entry in finished] == [0]  # what was finished is not lost


def test_a_corpus_without_documents_is_refused(bench: Bench) -> None:
    bench.corpus = write_fineweb_parquet(bench.root / "empty.parquet", [])
    with pytest.raises(ValueError, match=r"holds no documents\. Give one"):
        bench.run()
    assert not (bench.root / "cache").exists()


def test_a_corpus_too_short_for_a_row_is_refused(bench: Bench) -> None:
    bench.corpus = write_fineweb_parquet(bench.root / "short.parquet", ["a", "b"])
    with pytest.raises(ValueError, match="no unit fills a row of 32 tokens"):
        bench.run()


def test_a_document_that_is_not_text_is_refused(bench: Bench) -> None:
    bench.corpus = bench.root / "corpus.jsonl"
    lines = [json.dumps({"text": text}) for text in TEXTS]
    lines[25] = '{"text": ["a", "list"]}'
    bench.corpus.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"corpus\.jsonl, line 26: 'text' is a JSON array"):
        bench.run()
    manifest = bench.run("other", on_bad_document="skip")
    assert [entry.num_skipped_documents for entry in manifest.shards] == [0, 0, 1, 0, 0, 0, 0, 0]


def test_a_missing_column_is_refused_before_anything_is_made(bench: Bench, watch: Watch) -> None:
    with pytest.raises(ValueError, match="no column 'body'"):
        bench.run(text_column="body")
    assert not (bench.root / "cache").exists()
    assert watch.since() == (0, 0)
