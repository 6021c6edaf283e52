"""The benchmark of a head of fewer columns: its formulas, on a made-up scene."""

import pytest
import torch

from benchmarks import head_columns as benchmark
from benchmarks.head_scenes import TEMPERATURE, Scene
from stages.train_student.objective.loss import sparse_distillation_loss
from stages.train_student.objective.sparse_targets import SparseTargets


def made_up_scene(num_positions: int = 8, num_ids: int = 600, width: int = 8) -> Scene:
    generator = torch.Generator().manual_seed(0)
    return Scene(
        teacher_PV=torch.randn(num_positions, num_ids, generator=generator) * 1.5,
        input_PD=torch.randn(num_positions, width, generator=generator),
        head_VD=torch.randn(num_ids, width, generator=generator),
        labels_P=torch.randint(num_ids, (num_positions,), generator=generator),
    )


def test_with_all_columns_it_is_the_loss() -> None:
    scene = made_up_scene()
    kept, columns = scene.kept(), benchmark.all_columns(600)
    found = benchmark.loss_of(scene.input_PD @ scene.head_VD.T, kept, columns, 600)
    T = TEMPERATURE
    gaps = (kept.logp_PK[:, :1] - kept.logp_PK) * T
    tail = kept.log_p_tail_P - kept.logp_PK[:, 0]
    targets = SparseTargets(kept.ids_PK, gaps.float(), tail.float()[:, None], (1 / T,))
    weighting = (benchmark.WEIGHTING[0], benchmark.WEIGHTING[1] * T * T, T)
    sums = sparse_distillation_loss(
        scene.input_PD, scene.head_VD, scene.labels_P, targets, weighting, 8
    )
    torch.testing.assert_close(found.float() * 8, sums.weighted, rtol=1e-5, atol=0)


def test_drawn_columns_stand_for_all_others() -> None:
    """Σ weight·f is unbiased for Σ f, here of f = exp of some logits."""
    scene = made_up_scene()
    kept, mixture = scene.kept(), scene.mixture_V()
    values = torch.rand(600, generator=torch.Generator().manual_seed(1)).exp()
    generator = torch.Generator().manual_seed(2)
    found = []
    for _ in range(400):
        columns = benchmark.drawn_columns(kept, mixture, 40, generator)
        assert len(set(columns.ids_C.tolist())) == len(columns.ids_C)
        found.append(float((columns.log_weight_C.exp() * values[columns.ids_C]).sum()))
    sums = torch.tensor(found)
    allowed = 4.5 * float(sums.std()) / 400**0.5
    assert sums.mean().item() == pytest.approx(float(values.sum()), abs=allowed)
    assert 0 < allowed < 0.05 * float(values.sum())


def test_more_draws_are_less_noise() -> None:
    scene = made_up_scene()
    logits = scene.input_PD @ scene.head_VD.T
    few, many = benchmark.errors_of(scene, logits, (16, 1024), 12)
    assert many["gradient_noise"] < 0.4 * few["gradient_noise"]
    assert few["share_of_columns"] < many["share_of_columns"] <= 1


def test_training_on_all_columns_nears_the_teacher() -> None:
    scene = made_up_scene(num_positions=32)
    before = benchmark.held_out_kl(scene, None, 4, 0)
    for num_drawn in (None, 64):
        assert benchmark.held_out_kl(scene, num_drawn, 4, 40) < before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own
def test_times_are_ratios_to_the_whole_head() -> None:
    (row,) = benchmark.times_at(4000, 8, 200, (50,), chunk=16, repeats=1)
    assert row["share_of_columns"] == 0.062
    assert row["time_ratio"] > 0
