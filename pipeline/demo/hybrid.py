"""The demo's hybrid student: converted from the demo's teacher, aligned, then distilled.

It learns from the cache of the other students. That needs no weights of the teacher, because its
directory is given to the commands.
"""

from dataclasses import dataclass
from pathlib import Path

from pipeline.demo.student import Command, Student, train, type_command


@dataclass(frozen=True)
class HybridStudent:
    """Both trainings of one hybrid student. The first one begins as it was converted."""

    aligned: Student
    distilled: Student

    @property
    def converted(self) -> dict[str, float]:
        """The validation before any training."""
        return self.aligned.validations[0]

    @property
    def num_rows(self) -> int:
        """Rows that both trainings read."""
        return self.aligned.num_rows + self.distilled.num_rows


def train_hybrid(
    out: Path, command: Command, *, cache: Path, teacher: Path, seed: int
) -> HybridStudent:
    """Convert ``teacher`` into a directory of ``out``, and train the student there."""
    untrained, aligned, distilled = (out / name for name in ("untrained", "aligned", "distilled"))
    seeded = ("--set", f"train_student.seed={seed}")
    if not untrained.exists():
        type_command(
            command,
            (
                *("convert", str(teacher), "--recipe", "demo-hybrid-align"),
                *("--out", str(untrained), *seeded),
            ),
        )
    common = ("--cache", str(cache), "--teacher", str(teacher), *seeded)
    first = ("--recipe", "demo-hybrid-align", "--init", str(untrained), *common)
    second = ("--recipe", "demo-hybrid-distill", "--init", str(aligned), *common)
    return HybridStudent(
        train(command, "hybrid, aligned", aligned, first),
        train(command, "hybrid, distilled", distilled, second),
    )
