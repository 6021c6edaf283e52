"""Labels name each metric once, and show only what there is."""

import subprocess
import sys

from stages.train_student.tracking.metric_labels import (
    STEP,
    VALIDATION,
    label_at,
    progress_figures,
)
from tests.support import ROOT


def test_every_metric_is_listed_once() -> None:
    keys = [label.key for label in (*STEP, *VALIDATION)]
    assert len(set(keys)) == len(keys)
    assert all(key.startswith("validation/") for key in (label.key for label in VALIDATION))


def test_a_metric_label_names_its_temperature() -> None:
    assert label_at("KL(T={T})", 4 / 3) == "KL(T=1.33)"
    assert label_at("loss", 2.0) == "loss"


def test_progress_shows_only_the_available_figures() -> None:
    metrics = {"validation/ece": 0.5, "validation/agreement": 0.25, "validation/other": 1.0}
    assert progress_figures(VALIDATION, metrics, 1.0) == ["agreement 25.0%"]
    assert progress_figures(STEP, metrics, 1.0) == []


def test_metric_labels_import_nothing_heavy() -> None:
    script = (
        "import sys, stages.train_student.tracking.metric_labels as labels; "
        "assert labels.STEP; sys.exit(any(m in sys.modules for m in ('torch', 'numpy')))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
