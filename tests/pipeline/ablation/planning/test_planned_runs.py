"""From a sweep to the recipes of its runs, and what is wrong with any of them."""

import tomllib
from pathlib import Path

import pytest

from pipeline.ablation.planning.planned_runs import Problems, plan_runs
from pipeline.ablation.planning.sweep import SweepError, load_sweep
from pipeline.ablation.planning.sweep_copy import write_copy
from tests.support import ROOT
from tests.support.sweeps import planned


def test_every_variant_is_trained_at_every_point_with_every_seed(tmp_path: Path) -> None:
    plan, problems = planned(
        tmp_path,
        """
        seeds = [0, 5]
        [set]
        train_student.max_steps = 6
        [variant.base]
        [variant.labels]
        train_student.alpha_start = 0.0
        train_student.alpha_end = 0
        [grid]
        "train_student.student.num_blocks" = [1, 2]
        """,
    )
    assert problems == ""
    assert [run.name for run in plan.runs] == [
        f"{variant}/num_blocks={num_blocks}/seed={seed}"
        for seed in (0, 5)
        for variant in ("base", "labels")
        for num_blocks in (1, 2)
    ]
    last = plan.runs[-1].config
    assert (last.seed, last.max_steps, last.alpha_start, last.batch_size) == (5, 6, 0.0, 2)
    assert last.student.num_blocks == 2  # type: ignore[attr-defined]
    assert plan.runs[0].config.alpha_start == 0.8
    assert plan.points[3].settings == {
        "train_student.alpha_start": 0.0,
        "train_student.alpha_end": 0,
        "train_student.student.num_blocks": 2,
    }


def test_values_are_those_of_toml(tmp_path: Path) -> None:
    plan, problems = planned(
        tmp_path,
        """
        [variant.a]
        train_student.max_steps = "none"
        train_student.report_to = ["tensorboard"]
        train_student.epoch_rule = "scale_restart"
        train_student.batch_size = "1K"
        """,
    )
    assert problems == ""
    config = plan.runs[0].config
    assert (config.max_steps, config.report_to) == (None, ("tensorboard",))
    assert (config.epoch_rule, config.batch_size) == ("scale_restart", 1000)


def test_every_wrong_key_and_value_of_every_variant_is_listed(tmp_path: Path) -> None:
    _, problems = planned(
        tmp_path,
        """
        [variant.one]
        train_student.alpa_start = 0.5
        train_student.batch_size = "many"
        [variant.two]
        train_student.student.num_block = 2
        [variant.three]
        train_student.alpha_start = 0.95
        [variant.four]
        [grid]
        train_student.eval_steps = [1, 0]
        """,
    )
    lines = problems.splitlines()
    assert lines[0] == "sweep: 5 problems; nothing was started:"
    for said in (
        '[variant.one] train_student.alpa_start: unknown key "alpa_start"',
        "[variant.one] train_student.batch_size: expected a whole number",
        '[variant.two] train_student.student.num_block: unknown key "num_block"; the nearest is',
        "three/eval_steps=1, three/eval_steps=0: [variant.three] train_student.alpha_start: must "
        "be at most 1 − β = 0.9",
        "one/eval_steps=0, two/eval_steps=0, three/eval_steps=0 and 1 more: [grid] "
        "train_student.eval_steps: must be 1 or more",
    ):
        assert any(said in line for line in lines), said


def test_a_combination_that_is_wrong_names_its_point(tmp_path: Path) -> None:
    """Neither the layers of sLSTM nor the variant's number of blocks is wrong by itself."""
    _, problems = planned(
        tmp_path,
        """
        [set]
        train_student.student.slstm_at = [0, 1]
        train_student.student.num_blocks = 2
        [variant.small]
        train_student.student.num_blocks = 1
        """,
    )
    assert "small: " in problems
    assert "rising block indices below num_blocks = 1" in problems


def test_a_base_that_is_wrong_by_itself_is_refused_once(tmp_path: Path) -> None:
    with pytest.raises(SweepError) as caught:
        planned(tmp_path, "[set]\ntrain_student.nothing = 1\n[variant.a]\n[variant.b]\n")
    assert str(caught.value).count("unknown key") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[variant.a]\n[variant.b]\ntrain_student.alpha_start = 0.8\n",
            "b and a have the same settings",
        ),
        (  # these affect speed alone
            "[variant.a]\n[variant.b]\ntrain_student.loss_chunk = 80\n",
            "b and a have the same settings",
        ),
        ("[grid]\ntrain_student.max_steps = [3, 3]\n", "base/max_steps=3 is the name of several"),
        (
            '[grid]\n"train_student.device" = ["cuda:1", "cuda/1"]\n',
            "base/device=cuda-1 is the name of several",
        ),
    ],
)
def test_what_would_be_trained_twice_is_refused_by_name(
    tmp_path: Path, text: str, said: str
) -> None:
    assert said in planned(tmp_path, text)[1]


def test_more_runs_than_a_report_shows_are_refused(tmp_path: Path) -> None:
    values = list(range(1, 1002))
    with pytest.raises(SweepError, match=r"1,001 runs; expected 1,000 at most"):
        planned(tmp_path, f"[grid]\ntrain_student.max_steps = {values}\n")


def test_the_copy_of_a_sweep_is_the_same_sweep(tmp_path: Path) -> None:
    plan, _ = planned(
        tmp_path,
        """
        seeds = [1, 2]
        [set]
        train_student.max_steps = 6
        [variant.a]
        train_student.report_to = ["tensorboard"]
        train_student.alpha_start = 0.5
        [grid]
        "train_student.student.slstm_at" = [[], [0]]
        """,
    )
    write_copy(plan, tmp_path / "out")
    copy = plan_runs(load_sweep(tmp_path / "out/sweep.toml"), Problems())
    assert [run.name for run in copy.runs] == [run.name for run in plan.runs]
    assert [run.config for run in copy.runs] == [run.config for run in plan.runs]


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/experiments").glob("*.toml")), ids=str)
def test_shipped_sweeps_are_valid_and_say_how_they_are_run(path: Path) -> None:
    problems = Problems()
    plan = plan_runs(load_sweep(path), problems)
    assert problems.text("sweep") == ""
    assert len(plan.sweep.seeds) > 1
    text = path.read_text(encoding="utf-8")
    assert "# Hypothesis: " in text
    assert f"pipeline ablate {path.relative_to(ROOT)}" in text


def test_there_are_shipped_sweeps() -> None:
    names = {path.stem for path in (ROOT / "benchmarks/experiments").glob("*.toml")}
    assert {"delta-distillation", "frobenius"} <= names


def test_the_example_of_the_docs_is_valid(tmp_path: Path) -> None:
    page = (ROOT / "docs/ablations.md").read_text(encoding="utf-8")
    text = page.partition("```toml\n")[2].partition("```")[0]
    assert tomllib.loads(text)["recipe"] == "distil-xlstm"
    (tmp_path / "sweep.toml").write_text(text)
    problems = Problems()
    plan = plan_runs(load_sweep(tmp_path / "sweep.toml"), problems)
    assert problems.text("sweep") == ""
    assert len(plan.runs) == 18
