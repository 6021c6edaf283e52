"""``pipeline watch``, as it is typed."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support import ROOT
from tests.support.command_line import done, run
from tests.support.run_directories import write_run
from tests.support.train_configs import tiny_train_config
from tests.support.train_runs import run as train_run


def test_a_run_that_was_trained(tiny_cache: Path, tmp_path: Path) -> None:
    config = tiny_train_config(max_steps=4, report_to=(), eval_steps=2, logging_steps=1)
    train_run(config, tiny_cache, tmp_path / "run")
    text = done("watch", tmp_path / "run").stdout
    assert "run · finished · step 4 of 4 (100.0%)" in text
    for name in ("KL", "L_F", "grad norm", "α", "β", "learning rate", "validation agreement"):
        assert f"\n{name} " in text


def test_one_look_at_a_run_that_goes_on(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=5, is_finished=False)
    assert "step 5 of 8" in done("watch", tmp_path / "run", "--once").stdout


def test_what_is_no_run_is_an_error(tmp_path: Path) -> None:
    refused = run("watch", tmp_path / "nothing", "--once")
    assert refused.exit_code == 1
    assert "no such directory" in refused.stderr
    assert "is a file; expected a run" in run("watch", __file__, "--once").stderr


def test_ctrl_c_in_a_terminal_ends_it_quietly(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=5, is_finished=False)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "watch", str(tmp_path / "run"), "--interval", "0.2"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "40"},
    )
    os.close(theirs)
    seen = b""
    deadline = time.monotonic() + 120
    is_asked = False
    while time.monotonic() < deadline:
        ready, _, _ = select.select([ours], [], [], 1.0)
        try:
            seen += os.read(ours, 1 << 16) if ready else b""
        except OSError:  # the process has closed its end
            break
        if b"grad norm" in seen and not is_asked:
            process.send_signal(signal.SIGINT)
            is_asked = True
    assert process.wait(timeout=60) == 0
    os.close(ours)
    assert is_asked
    left = seen.rpartition(b"\x1b[?1049l")[2].decode()
    assert "step 5 of 8" in left
    assert "Traceback" not in left
    assert "Interrupted" not in left
