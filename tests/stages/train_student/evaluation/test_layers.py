"""What validation says of layers, against the same taken row by row, and against known gates."""

from pathlib import Path
from typing import Any

import pytest
import torch

import cache_format
from cache_format.reader import Cache
from stages.train_student.data.batch import read_batch
from stages.train_student.evaluation.layers import OutputGates
from stages.train_student.evaluation.validation import validate
from stages.train_student.evaluation.validation_metric import LayerFigures, ScoredPositions
from stages.train_student.losses.objective import make_objective
from stages.train_student.new_student import load_student
from tests.support.hybrid_runs import align_config, distill_config, hybrid_cache
from tests.support.train_configs import tiny_train_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return cache_format.open(hybrid_cache(tmp_path_factory.mktemp("hybrid")))


def validated(cache: Cache, config: Any) -> tuple[Any, dict[str, float]]:
    """A new student, and what validation says of it on 5 rows."""
    model: Any = load_student(config, cache)
    objective = make_objective(model, cache, config, CPU)
    extent = {"num_rows": 5, "max_rows": 100, "batch_size": 2}
    return model, validate(model, objective, cache, **extent)


def test_alignment_is_the_mean_square_over_positions_and_width(cache: Cache) -> None:
    model, found = validated(cache, align_config())
    total_L = torch.zeros(3, dtype=torch.float64)
    for index in range(5):
        batch = read_batch(cache, "validation", [index], with_sketch=False)
        with torch.no_grad():
            errors_LBT = model.alignment(batch.input_ids, batch.is_document_start).errors_LBT
        total_L += errors_LBT.double().sum((1, 2))
    means = (total_L / (5 * 32 * 32)).tolist()  # positions of a row, width of all heads
    for index, mean in enumerate(means):
        assert found[f"validation/alignment_layer_{index:02}"] == pytest.approx(mean, rel=1e-5)
    assert found["validation/alignment"] == pytest.approx(sum(means) / 3, rel=1e-5)


def test_a_window_over_all_positions_is_the_teacher(cache: Cache) -> None:
    settings = {"window": 32, "output_gate_bias": -100.0}
    _, near = validated(cache, align_config(**settings))
    _, far = validated(cache, align_config(**settings | {"window": 2}))
    assert near["validation/alignment"] < 1e-10 < 1e-2 < far["validation/alignment"]


def test_gates_of_a_new_student_are_those_of_its_settings(cache: Cache) -> None:
    _, found = validated(cache, distill_config(output_gate_bias=1.0))
    share = torch.tensor(1.0).sigmoid().item()
    assert found["validation/mlstm_share"] == pytest.approx(share, rel=1e-6)
    for index in range(3):
        median = found[f"validation/output_gate_layer_{index:02}"]
        assert median == pytest.approx(share, abs=6e-4)
    assert "validation/alignment" not in found


@pytest.mark.parametrize("num_values", [1, 2, 1001])
def test_the_median_is_found_to_a_thousandth(num_values: int) -> None:
    gates = torch.rand(num_values, generator=torch.Generator().manual_seed(num_values)) ** 3
    metric = OutputGates()
    for part in torch.split(gates, 400):  # as batches come
        metric.add(positions_with({4: part}))
    found = metric.values()
    assert found["output_gate_layer_04"] == pytest.approx(float(gates.median()), abs=1e-3)
    assert found["mlstm_share"] == pytest.approx(float(gates.mean()), rel=1e-5)


def positions_with(gates: dict[int, torch.Tensor]) -> ScoredPositions:
    nothing: Any = None
    layers = LayerFigures(errors={}, gates=gates, num_positions=1)
    return ScoredPositions(nothing, nothing, nothing, nothing, nothing, layers)


def test_a_student_without_its_teacher_has_no_such_figures(tiny_cache: Path) -> None:
    opened = cache_format.open(tiny_cache)
    _, found = validated(opened, tiny_train_config())
    assert not [name for name in found if "alignment" in name or "mlstm" in name]
