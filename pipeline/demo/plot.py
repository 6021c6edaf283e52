"""The demo's picture: validation loss of both students, KL to the teacher, and the α/T schedule."""

import json
from pathlib import Path
from typing import Any

from pipeline.demo.student import Student

_COLOURS = {"distilled": "#1f6feb", "labels": "#d9822b"}


def plot(target: Path, students: list[Student], metrics: Path) -> None:
    """Write the PNG, the schedule being that of ``metrics``; whole or not at all."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    from cache_format.storage.atomic import atomic_file

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.4), layout="constrained")
    for student in students:
        _curve(left, student, "validation/loss")
        _curve(middle, student, "validation/kl")
    teacher_loss = students[0].last["validation/teacher_loss"]
    left.axhline(teacher_loss, color="0.4", linestyle="--", label=f"teacher {teacher_loss:.3f}")
    left.set(title="Validation loss", xlabel="optimizer step", ylabel="nats per token")
    middle.set(
        title="KL(teacher ‖ student), T = 1", xlabel="optimizer step", ylabel="nats per token"
    )
    left.set_ylim(top=_second_highest(students, "validation/loss") * 1.02)
    middle.set_ylim(0, _second_highest(students, "validation/kl") * 1.05)
    left.legend()
    middle.legend()
    _schedule(right, metrics)
    with atomic_file(target) as file:
        figure.savefig(file, format="png", dpi=120)
    plt.close(figure)


def _curve(axes: Any, student: "Student", key: str) -> None:
    steps = [row["step"] for row in student.validations]
    values = [row[key] for row in student.validations]
    label = f"{student.name} {values[-1]:.3f}"
    axes.plot(steps, values, marker="o", markersize=3, color=_COLOURS[student.name], label=label)


def _second_highest(students: list[Student], key: str) -> float:
    """The untrained student's value would squeeze the rest of the picture; leave it out of view."""
    return max(row[key] for student in students for row in student.validations[1:])


def _schedule(axes: Any, metrics: Path) -> None:
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if "schedule/alpha" in row]
    steps = [row["step"] for row in rows]
    axes.plot(steps, [row["schedule/alpha"] for row in rows], color="#2da44e", label="α (left)")
    # Both follow the same curve: ranges of their own keep one from hiding the other.
    axes.set(title="Δ-distillation schedule", xlabel="optimizer step", ylabel="α", ylim=(0.0, 1.0))
    other = axes.twinx()
    temperatures = [row["schedule/temperature"] for row in rows]
    other.plot(steps, temperatures, color="#a371f7", linestyle="--", label="temperature (right)")
    other.set(ylabel="temperature", ylim=(0.9, 2.1))
    lines = axes.get_lines() + other.get_lines()
    axes.legend(lines, [line.get_label() for line in lines])
