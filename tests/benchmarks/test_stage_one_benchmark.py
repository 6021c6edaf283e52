"""The benchmark of stage one runs, and its figures fit together."""

import json

import pytest
from click.testing import CliRunner

from benchmarks import stage_one as module
from benchmarks.__main__ import main


@pytest.mark.parametrize("targets", ["top_k", "hidden"])
def test_the_stage_one_benchmark_prints_its_figures(
    monkeypatch: pytest.MonkeyPatch, targets: str
) -> None:
    monkeypatch.setitem(module.PRESETS, "94M", (32, 48, 2, 4, 2))
    monkeypatch.setattr(module, "HEAD_ROWS", 4_400)
    monkeypatch.setattr(module, "NUM_IDS", 4_300)
    arguments = ["stage-one", "--teacher", "94M", "--sequence-length", "64", "--rows", "3"]
    options = ["--documents", "1", "--repeats", "2", "--compile", "off", "--json"]
    options += ["--targets", targets]
    result = CliRunner().invoke(main, [*arguments, *options])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures["rows_per_forward"] == 3
    assert figures["ratio_least"] <= figures["ratio_to_bare_forward"] <= figures["ratio_most"]
    assert figures["ratio_to_bare_forward"] > 0
    assert figures["tokens"] % 64 == 0
    assert figures["mfu"] is None
    assert figures["targets"] == targets
    of_chunk = {"top_k": ("head_ms", "topk_ms", "torch_topk_ms")}
    assert min(figures[name] for name in of_chunk.get(targets, ("head_ms", "coefficients_ms"))) > 0
