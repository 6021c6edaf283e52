"""The docs' figures of GPUs are those that are committed, and without any they say so."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.report import NOT_MEASURED, RESULTS, load, sentence, tables
from tests.support import ROOT


def page(name: str) -> str:
    """A page's text in one line."""
    return " ".join((ROOT / name).read_text("utf-8").split())


@pytest.mark.parametrize("name", ["README.md", "docs/results.md"])
def test_pages_say_what_was_measured_on_gpus(name: str) -> None:
    documents = load(RESULTS)
    assert sentence(documents) in page(name)
    assert (NOT_MEASURED in page(name)) is not bool(documents)


def test_the_tables_are_those_of_the_committed_figures() -> None:
    _, heading, figures = (ROOT / "docs/gpu.md").read_text("utf-8").partition("\n## Figures\n\n")
    assert heading
    assert figures == tables(load(RESULTS)) + "\n"


def document(**changes: Any) -> dict[str, Any]:
    stage_one = {"cached_tokens_per_s": 123_456.7, "ratio_to_bare_forward": 0.961, "mfu": 0.52}
    return {
        "is_tiny": False,
        "environment": {
            "device": "NVIDIA H200",
            "date": "2026-12-01",
            "commit": "0123456789abcdef",
            "driver": "580.1",
            "cuda": "13.0",
            "python": "3.12.3",
            "packages": {"torch": "2.13.0+cu130"},
        },
        "parts": {
            "stage_one_top_k_512": {"figures": stage_one},
            "stage_two": {"figures": {"ratio_to_labels_only": 0.97, "mfu": None}},
            "loss": {"failed": "exit status 1"},
            "stage_one_sampled_2048": {"skipped": "10 s are left"},
        },
        **changes,
    }


def test_figures_become_tables_and_a_sentence() -> None:
    made = tables([document()])
    assert "### NVIDIA H200" in made
    assert "Commit 0123456789ab, 2026-12-01; driver 580.1, CUDA 13.0" in made
    assert "| stage one top k 512 | — | 123,457 | 0.961 | 0.52 |" in made
    assert "| stage two | — | — | 0.97 |" in made
    assert "Without figures: loss (failed), stage_one_sampled_2048 (skipped)." in made
    said = sentence([document()])
    assert "On an NVIDIA H200, caching runs at 0.961" in said
    assert "training at 0.97" in said


def test_figures_that_say_nothing_are_refused(tmp_path: Path) -> None:
    assert load(tmp_path) == []
    (tmp_path / "h200.json").write_text(json.dumps(document()))
    assert load(tmp_path) == [document()]
    (tmp_path / "tiny.json").write_text(json.dumps(document(is_tiny=True)))
    with pytest.raises(ValueError, match=r"tiny\.json: its figures are of --tiny or a CPU"):
        load(tmp_path)


def test_figures_of_other_benchmarks_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "h200.json").write_text(json.dumps(document()))
    (tmp_path / "recall.json").write_text(json.dumps({"rows": []}))
    assert load(tmp_path) == [document()]
