"""What is drawn: figures and curves in the terminal's width and characters."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.ablation.planning.sweep_copy import log_of, write_copy
from pipeline.watch.follow import follow, show_once
from pipeline.watch.view import View, plain_line
from pipeline.watch.watched import Watcher
from tests.support.run_directories import write_run
from tests.support.sweeps import planned


class Latin(io.StringIO):
    """A terminal without Unicode."""

    encoding = "latin-1"


def drawn(path: Path, *, width: int = 80, file: io.StringIO | None = None) -> str:
    file = file or io.StringIO()
    show_once(Watcher(path), Console(file=file, width=width))
    return file.getvalue()


def test_a_run_has_its_figures_and_curves(tmp_path: Path) -> None:
    text = drawn(write_run(tmp_path / "run", steps=5, is_finished=False))
    first, *_ = text.splitlines()
    assert first.startswith("run · running · step 5 of 8 (62.5%) · 640 tokens · 64 tokens/s · 0:06")
    for words in (
        ["loss", "2.500", "█▆▅▃▁"],
        ["α", "0.75", "█▆▅▃▁"],
        ["T", "1.5", "█▆▅▃▁"],
        ["grad", "norm", "0.20", "█▄▂▁▁"],
        ["validation", "loss", "4.0000", "4.0000", "█▂▁▁▁▁"],
    ):
        assert words in [line.split() for line in text.splitlines()]
    assert "train loss, steps 1 to 5, 2.5 to 2.9" in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int, tmp_path: Path) -> None:
    text = drawn(write_run(tmp_path / "run", steps=5, is_finished=False), width=width)
    assert max(map(len, text.splitlines())) <= width


def test_a_terminal_without_unicode_gets_other_characters(tmp_path: Path) -> None:
    text = drawn(write_run(tmp_path / "run"), file=Latin())
    assert ["loss", "2.200", "#%*+=-._"] in [line.split() for line in text.splitlines()]
    assert "alpha" in text
    text.encode("latin-1")


def test_of_agreement_the_largest_is_best(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", figures={"validation/agreement": 0.1})
    words = [line.split() for line in drawn(path).splitlines()]
    (agreement,) = [line for line in words if line[:2] == ["validation", "agreement"]]
    assert agreement[2:4] == ["10.0%", "24.4%"]


def test_names_from_files_are_text_and_not_commands_of_a_terminal(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a[red]\x1b[2J")
    for text in (drawn(path), plain_line(Watcher(path).look())):
        assert "a[red]\\x1b[2J" in text
        assert "\x1b" not in text


def test_a_run_that_has_not_begun_and_one_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert drawn(tmp_path / "empty").split("\n")[0] == "empty · has not begun"
    path = write_run(tmp_path / "run", steps=5, is_finished=False)
    watcher = Watcher(path, now=lambda: (path / "metrics.jsonl").stat().st_mtime + 660)
    assert plain_line(watcher.look()) == (
        "run · no report for 11:00: stopped, or busy with a validation or a checkpoint · step 5 of "
        "8 (62.5%) · 640 tokens · loss 2.500 · validation loss 4.0000"
    )


def test_a_sweep_has_what_goes_on_first_and_why_runs_failed(tmp_path: Path) -> None:
    plan, _ = planned(tmp_path / "file", "seeds = [0, 1, 2]\n")
    out = tmp_path / "sweep"
    write_copy(plan, out)
    write_run(out / "base/seed=0")
    write_run(out / "base/seed=1", steps=4, is_finished=False)
    log_of(out, "base/seed=2").write_text("$ now pipeline train-student\nError: no space\n")
    text = drawn(out, width=120)
    assert "3 runs: 1 finished, 1 running, 1 failed" in " ".join(text.split())
    rows = [line.split() for line in text.splitlines() if line.startswith("base/seed")]
    assert [row[0] for row in rows] == ["base/seed=1", "base/seed=2", "base/seed=0", "base/seed=2"]
    assert rows[0][1:6] == ["running", "50%", "0:08", "2.600", "4.0000"]
    assert "base/seed=2 failed: no space" in text
    assert "1 failed · 12 steps done" in plain_line(Watcher(out).look())


class Steps:
    """Instead of sleeping, the run goes on."""

    def __init__(self, path: Path) -> None:
        self.path, self.num = path, 0

    def __call__(self, seconds: float) -> None:
        self.num += 1
        if self.num == 2:
            with open(self.path / "metrics.jsonl", "a") as file:
                file.write('{"step": 8, "train/loss": 1.0}\n')
        if self.num == 4:
            (self.path / "model").mkdir()
            (self.path / "model/config.json").touch()


def test_without_a_terminal_each_change_is_a_line(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", steps=5, is_finished=False)
    console = Console(file=io.StringIO(), width=80)
    follow(Watcher(path), console, 1.0, Steps(path))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert [line.split(" · ")[2] for line in lines[:2]] == [
        "step 5 of 8 (62.5%)",
        "step 8 of 8 (100.0%)",
    ]
    assert lines[2].startswith("run · finished · step 8 of 8")


def test_ctrl_c_leaves_the_last_picture(tmp_path: Path) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    path = write_run(tmp_path / "run", steps=5, is_finished=False)
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    follow(Watcher(path), console, 1.0, interrupted)
    assert isinstance(console.file, io.StringIO)
    left = console.file.getvalue().rpartition("\x1b[?1049l")[2]  # after the alternate screen
    assert "step 5 of 8" in left
    assert "train loss, steps 1 to 5" in left


def test_a_finished_run_is_drawn_once(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    file = io.StringIO()
    follow(Watcher(path), Console(file=file, width=80), 1.0, lambda _: pytest.fail("slept"))
    assert file.getvalue() == drawn(path)
    assert View(Watcher(path).look())
