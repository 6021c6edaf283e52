"""How each metric is shown to people: its key in ``metrics.jsonl``, its labels and its format.

Progress lines, the table of an evaluation and the model card look it up here, in this order. A
metric that is not listed is still in ``metrics.jsonl`` and in the trackers. Imports nothing heavy.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MetricLabel:
    """One metric. A label is absent where the metric is not shown; "{T}" in it is a temperature."""

    key: str
    format: str
    """As in format(value, …)."""
    progress: str | None = None
    """On the line of a step or of a validation."""
    column: str | None = None
    """Above a column of an evaluation's table, which has a row for student and one for teacher.
    Only of metrics ``validation/NAME``; the teacher's is ``validation/teacher_NAME``."""
    card: str | None = None
    """In the model card, where all numbers have four digits."""


_SPLIT = "validation"
STEP = (
    MetricLabel(key="train/loss", format=".3f", progress="loss"),
    MetricLabel(key="train/cross_entropy", format=".3f", progress="CE"),
    MetricLabel(key="train/kl", format=".3f", progress="KL(T={T})"),
    MetricLabel(key="train/alignment", format=".3g", progress="alignment"),
    MetricLabel(key="train/frobenius", format=".3f", progress="L_F"),
    MetricLabel(key="train/state_mse", format=".3g", progress="state MSE"),
    MetricLabel(key="train/layer_mse", format=".3g", progress="layer MSE"),
    MetricLabel(key="schedule/alpha", format=".2f", progress="α"),
    MetricLabel(key="train/gradient_norm", format=".2f", progress="grad norm"),
    MetricLabel(key="speed/mfu", format=".0%", progress="MFU"),
)
VALIDATION = (
    MetricLabel(
        key="validation/loss",
        format=".4f",
        progress="loss",
        column="loss",
        card="loss, nats per token",
    ),
    MetricLabel(
        key="validation/perplexity",
        format=".1f",
        progress="perplexity",
        column="perplexity",
        card="perplexity",
    ),
    MetricLabel(
        key="validation/kl",
        format=".4f",
        progress="KL(T={T}) to teacher",
        column="KL(T={T})",
        card="KL to the teacher, nats",
    ),
    MetricLabel(
        key="validation/agreement",
        format=".1%",
        progress="agreement",
        column="agreement",
        card="agreement with the teacher's top-1",
    ),
    MetricLabel(key="validation/accuracy", format=".1%", column="accuracy", card="accuracy"),
    MetricLabel(key="validation/ece", format=".4f", column="ECE", card="calibration error"),
    MetricLabel(
        key="validation/teacher_loss",
        format=".4f",
        progress="teacher's loss",
        card="teacher's loss, nats per token",
    ),
    MetricLabel(
        key="validation/alignment",
        format=".3g",
        progress="alignment error",
        card="mean square per layer between the mixers' outputs and the teacher's attention",
    ),
    MetricLabel(
        key="validation/mlstm_share",
        format=".0%",
        progress="mLSTM's share",
        card="the mLSTM's share of the mixers' outputs (mean output gate)",
    ),
)


def label_at(label: str, temperature: float) -> str:
    """``label`` with ``temperature`` in the place of "{T}", as in "KL(T=1.33)"."""
    return label.format(T=f"{temperature:.3g}")


def cache_labels(metrics: Iterable[str]) -> list[str]:
    """The labels of the caches that ``metrics``, names, are of; none of a run of one cache."""
    parts = (name.split("/") for name in metrics)
    return list(dict.fromkeys(part[1] for part in parts if part[0] == _SPLIT and len(part) == 3))


def of_cache(label: str, metric: str) -> str:
    """The name that ``metric``, such as ``validation/loss``, has for one of several caches."""
    split, _, name = metric.partition("/")
    return f"{split}/{label}/{name}"


def progress_figures(
    labels: tuple[MetricLabel, ...], metrics: Mapping[str, float], temperature: float
) -> list[str]:
    """``metrics`` as a line of progress shows them, each as "LABEL VALUE"."""
    return [
        f"{label_at(label.progress, temperature)} {metrics[label.key]:{label.format}}"
        for label in labels
        if label.progress is not None and label.key in metrics
    ]
