"""Sweeps of students that are small enough for a test."""

from pathlib import Path

from pipeline.ablation.planning.planned_runs import Plan, Problems, plan_runs
from pipeline.ablation.planning.sweep import load_sweep

RECIPE = """
[train_student.student]
num_blocks = 1
slstm_at = []
num_heads = 2
qkv_block_size = 4
dropout = 0.1
[train_student]
batch_size = 2
gradient_accumulation_steps = 1
learning_rate = 3e-3
max_steps = 4
precision = "fp32"
loss_chunk = 40
compile = "off"
device = "cpu"
logging_steps = 1
validation_rows = 4
save_steps = 2
report_to = []
"""


def write_sweep(directory: Path, text: str, *, name: str = "sweep") -> Path:
    """The file of a sweep whose base is ``RECIPE``, and whose seed is 0 if ``text`` names none."""
    directory.mkdir(exist_ok=True)
    (directory / "tiny.toml").write_text(RECIPE)
    path = directory / f"{name}.toml"
    seeds = "" if "seeds =" in text else "seeds = [0]\n"
    path.write_text(f'recipe = "tiny.toml"\n{seeds}{text}')
    return path


def planned(directory: Path, text: str) -> tuple[Plan, str]:
    """The plan of ``write_sweep``, and its problems."""
    sweep = load_sweep(write_sweep(directory, text))
    problems = Problems()
    return plan_runs(sweep, problems), problems.text("sweep")
