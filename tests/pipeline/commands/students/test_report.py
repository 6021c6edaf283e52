"""``pipeline report``, as it is typed."""

from pathlib import Path

import pytest

from tests.support.command_line import done, run
from tests.support.html_pages import parse
from tests.support.run_directories import write_run
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
