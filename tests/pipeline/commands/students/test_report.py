"""``pipeline report``, as it is typed."""

from pathlib import Path

import pytest

from benchmarks.result_files import block, load_result
from pipeline.ablation.planning.sweep_copy import write_copy
from tests.support.command_line import done, run
from tests.support.html_pages import parse
from tests.support.run_directories import write_run
from tests.support.sweeps import planned
from tests.support.train_configs import tiny_train_config
from tests.support.train_runs import run as train_run


def test_report_of_runs_that_were_trained(tiny_cache: Path, tmp_path: Path) -> None:
    for seed in range(2):
        config = tiny_train_config(max_steps=4, seed=seed, report_to=(), eval_steps=2)
        train_run(config, tiny_cache, tmp_path / f"runs/seed-{seed}")
    result = done("report", tmp_path / "runs", "--out", tmp_path / "report")
    assert result.stdout == f"{tmp_path}/report/index.html: 2 runs of 1 recipe.\n"
    shown = parse((tmp_path / "report/index.html").read_text()).shown
    assert "2 (seeds 0, 1)" in shown
    assert "torch" in shown
    text = (tmp_path / "report/report.md").read_text()
    assert "| rank | recipe | runs | loss | perplexity | KL | agreement |" in text
    pictures = sorted(path.name for path in (tmp_path / "report/charts").iterdir())
    assert {"validation-loss.png", "train-frobenius.png", "schedule-alpha.png"} <= set(pictures)
    assert all(f"](charts/{name})" in text for name in pictures)
    for name in pictures:
        assert (tmp_path / "report/charts" / name).read_bytes().startswith(b"\x89PNG")


def test_a_report_replaces_an_earlier_one(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one")
    write_run(tmp_path / "two", beta_end=0.0, figures={"validation/accuracy": 0.5})
    out = tmp_path / "report"
    done("report", tmp_path, "--out", out, "--rank-by", "kl")
    assert (out / "charts/validation-accuracy.png").exists()
    done("report", one, "--out", out)
    assert not (out / "charts/validation-accuracy.png").exists()
    assert "1 run of 1 recipe" in (out / "index.html").read_text()


def test_names_that_matplotlib_reads_as_formulas(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/_$x^$ 模型\u200b", loss=3.0)
    write_run(tmp_path / "runs/$", beta_end=0.0)
    done("report", tmp_path / "runs", "--out", tmp_path / "report")
    assert (tmp_path / "report/charts/validation-loss.png").exists()


@pytest.mark.parametrize("name", ["notes.txt", "charts/notes.txt"])
def test_what_is_no_report_is_not_replaced(tmp_path: Path, name: str) -> None:
    path = write_run(tmp_path / "run")
    file = tmp_path / "mine" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    refused = run("report", path, "--out", tmp_path / "mine")
    assert refused.exit_code == 1
    assert "holds something other than an earlier report" in refused.stderr
    assert file.read_text() == "mine"
    assert "holds something other" in run("report", path, "--out", path).stderr


def test_a_directory_without_runs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused = run("report", tmp_path / "empty", "--out", tmp_path / "report")
    assert refused.exit_code == 1
    assert "no run of stage two in it" in refused.stderr
    assert not (tmp_path / "report").exists()


def write_sweep_of_two(tmp_path: Path) -> Path:
    """Two variants and three seeds, of which the last has not begun."""
    variant = "[variant.wide]\ntrain_student.student.num_blocks = 2\n"
    plan, _ = planned(tmp_path / "file", f"seeds = [0, 1, 2]\n[variant.base]\n{variant}")
    write_copy(plan, tmp_path / "sweep")
    for seed, (base, wide) in enumerate([(4.0, 3.9), (4.2, 4.0)]):
        write_run(tmp_path / f"sweep/base/seed={seed}", seed=seed, loss=base)
        write_run(tmp_path / f"sweep/wide/seed={seed}", seed=seed, loss=wide, beta_end=0.0)
    return tmp_path / "sweep"


def test_a_sweep_s_report_says_what_has_not_begun(tmp_path: Path) -> None:
    sweep = write_sweep_of_two(tmp_path)
    result = done("report", sweep, "--out", tmp_path / "report")
    expected = f"{sweep}: a sweep of 6 runs: 4 finished, 2 not begun."
    assert result.stdout.splitlines()[1:] == [
        expected,
        "Not begun: base/seed=2, wide/seed=2.",
    ]
    assert expected in parse((tmp_path / "report/index.html").read_text()).shown


def test_a_sweep_of_which_nothing_has_begun_is_refused(tmp_path: Path) -> None:
    plan, _ = planned(tmp_path / "file", "seeds = [0]")
    write_copy(plan, tmp_path / "sweep")
    refused = run("report", tmp_path / "sweep", "--out", tmp_path / "report")
    assert refused.exit_code == 1
    assert "a sweep of 1 run: 1 not begun" in refused.stderr
    assert "nothing to report yet" in refused.stderr


def test_a_sweep_that_cannot_be_read_is_reported_all_the_same(tmp_path: Path) -> None:
    sweep = write_sweep_of_two(tmp_path)
    (sweep / "base.toml").unlink()
    result = done("report", sweep, "--out", tmp_path / "report")
    assert "Which of the sweep's runs have not begun is not known" in result.stdout


def test_the_figures_of_a_sweep_as_a_file_of_results(tmp_path: Path) -> None:
    sweep = write_sweep_of_two(tmp_path)
    file = tmp_path / "tables/mine.json"
    result = done("report", sweep, "--json", file, "--baseline", "base")
    assert result.stdout.startswith(f"{file}: 4 runs of 2 recipes.")
    found = load_result("mine", file.parent)
    assert found["command"] == f"pipeline report {sweep} --baseline base"
    assert "[variant.wide]" in found["sweeps"][0]
    assert found["rows"][0]["loss_difference"]["mean"] == pytest.approx(-0.15)
    assert found["rows"][0]["loss_difference"]["num_runs"] == 2
    assert "loss_difference" not in found["rows"][1]
    assert [run["loss"] for run in found["runs"]] == [3.9, 4.0, 4.0, 4.2]
    assert block(found, ["num_runs", "loss", "agreement", "loss_difference"]) == (
        "| recipe | runs | loss | agreement | loss, to base |\n"
        "|---|---|---|---|---|\n"
        "| wide | 2 | 3.9500 ±0.0707 | 25.3 % ±0.5 | −0.1500 ±0.0707 |\n"
        "| base | 2 | 4.1000 ±0.1414 | 24.4 % ±0.8 | |\n"
    )


def test_differences_by_seed_are_in_the_report(tmp_path: Path) -> None:
    sweep = write_sweep_of_two(tmp_path)
    done("report", sweep, "--out", tmp_path / "report")
    text = (tmp_path / "report/report.md").read_text()
    assert "## Differences to wide, seed by seed" in text
    assert "| base | 2 | +0.1500 ± 0.0707 | +0.0375 ± 0.0177 | -0.9% ± 0.4% |" in text


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "Nothing to write: give --out, --json or both."),
        (("--json", "a.json", "--baseline", "b"), "'b' is none of the recipes: wide, base."),
    ],
)
def test_reports_that_cannot_be_made(
    options: tuple[str, ...], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = write_sweep_of_two(tmp_path)
    monkeypatch.chdir(tmp_path)
    refused = run("report", sweep, *options)
    assert refused.exit_code != 0
    assert expected in refused.stderr
    assert not (tmp_path / "a.json").exists()


def test_runs_that_do_not_compare_have_no_file_of_results(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/one")
    write_run(tmp_path / "runs/two", cache_id="00" * 32)
    refused = run("report", tmp_path / "runs", "--json", tmp_path / "a.json")
    assert refused.exit_code == 1
    assert "2 tables of results: a summary has one" in refused.stderr
    assert not (tmp_path / "a.json").exists()
