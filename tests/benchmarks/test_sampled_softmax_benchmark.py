"""The benchmark of a head of fewer columns, on a made-up scene."""

from dataclasses import replace

import torch

from benchmarks import sampled_softmax as benchmark
from benchmarks.sampled_softmax_scenes import TEMPERATURE, Scene


def made_up_scene(num_positions: int = 8, num_ids: int = 2000, width: int = 8) -> Scene:
    generator = torch.Generator().manual_seed(0)
    return Scene(
        teacher_PV=torch.randn(num_positions, num_ids, generator=generator) * 1.5,
        input_PD=torch.randn(num_positions, width, generator=generator),
        head_VD=torch.randn(num_ids, width, generator=generator) * 0.5,
        labels_P=torch.randint(num_ids, (num_positions,), generator=generator),
    )


def test_targets_are_the_teacher_s_distribution() -> None:
    scene = made_up_scene()
    log_p_PK, log_tail_P = scene.targets().logprobs(TEMPERATURE)
    expected_PV = (scene.teacher_PV.double() / TEMPERATURE).log_softmax(1)
    largest_PK = expected_PV.topk(64, 1).values
    torch.testing.assert_close(log_p_PK, largest_PK, atol=1e-5, rtol=0)
    tail_P = 1 - largest_PK.exp().sum(1)
    torch.testing.assert_close(log_tail_P.exp(), tail_P, atol=1e-5, rtol=0)


def test_vocabulary_ranks_follow_the_mean_mass() -> None:
    scene = made_up_scene()
    mass_V, ranks_V = scene.teacher_PV.softmax(1).mean(0), scene.ranks_V()
    assert ranks_V[mass_V.argmax()] == 0
    assert ranks_V[mass_V.argmin()] == 1999


def test_given_student_logits_produce_the_same_errors_as_the_head() -> None:
    scene = made_up_scene()
    logits_PV = scene.input_PD @ scene.head_VD.T
    hidden_PE, head_VE = replace(scene, student_PV=logits_PV).student()
    assert torch.equal(hidden_PE @ head_VE.T, logits_PV)
    few = list(benchmark.errors_of(scene, (64,), 3))
    assert few == list(benchmark.errors_of(replace(scene, student_PV=logits_PV), (64,), 3))


def test_more_samples_give_less_gradient_noise() -> None:
    few, many = benchmark.errors_of(made_up_scene(), (16, 1024), 12)
    assert 0 < many["gradient_noise"] < 0.4 * few["gradient_noise"]


def test_training_on_all_columns_approaches_the_teacher() -> None:
    scene = made_up_scene(num_positions=32)
    before = benchmark.held_out_kl(scene, None, 4, 0)
    for num_drawn in (None, 64):
        assert benchmark.held_out_kl(scene, num_drawn, 4, 40) < before


def test_times_are_ratios_to_the_whole_head() -> None:
    (row,) = benchmark.times_at(4000, 8, 200, (50,), chunk=16, repeats=1, compile="off")
    assert row["share_of_columns"] == 0.062
    assert row["time_ratio"] > 0
