"""A judgement as a table for people."""

from pipeline.judgement.bootstrap import Band
from pipeline.judgement.judgement import Judgement

_SHOWN = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Tolerances of the row of C_α."""


def judgement_text(judgement: Judgement) -> str:
    """The set with its size, its scores, C_α, α*, whether it is lossless, and the bands."""
    size = len(judgement.benchmarks)
    lines = [f"Benchmark set: {judgement.set_name} ({size} benchmarks)", ""]
    lines += _columns(_score_rows(judgement))
    rates = [f"{judgement.rate(alpha):.3f}" for alpha in _SHOWN]
    lines += ["", *_columns([["α", *map(str, _SHOWN)], ["C_α", *rates]]), ""]
    lines += summary_lines(judgement)
    return "\n".join(lines)


def summary_lines(judgement: Judgement) -> list[str]:
    """α*, lossless or not, and how much of it is chance."""
    size = len(judgement.benchmarks)
    num_won = sum(needed == 0 for needed in judgement.tolerances)
    verdict = "lossless" if judgement.is_lossless else "not lossless"
    options = judgement.options
    lines = [
        *filter(None, [judgement.unit_warning]),
        f"α* = {judgement.alpha_star:.4f} on {judgement.set_name} ({size} benchmarks); on another "
        "set it is another number.",
        f"{verdict}: C_0 = {num_won}/{size} = {judgement.rate(0.0):.3f}; lossless is C_0 ≥ 0.5.",
        f"{options.level:.0%} bands from {options.num_resamples:,} bootstrap resamples:",
        "  over benchmarks: " + _band_text(judgement.over_benchmarks),
    ]
    if judgement.over_items is None:
        lines.append("  over items: no samples_*.jsonl of both beside the result files")
    else:
        lines.append(
            f"  over items ({judgement.num_items_logged} of {size} benchmarks have them): "
            + _band_text(judgement.over_items)
        )
    return lines + [benchmark.note for benchmark in judgement.benchmarks if benchmark.note]


def _band_text(found: Band) -> str:
    low, high = found.alpha_star
    return f"α* {low:.4f} to {high:.4f}, lossless in {found.lossless_share:.0%}"


def _score_rows(judgement: Judgement) -> list[list[str]]:
    rows = [["benchmark", "metric", "shots", "teacher", "student", "ratio", "needs α", "items"]]
    for benchmark, needed in zip(judgement.benchmarks, judgement.tolerances, strict=True):
        shots, items = benchmark.num_fewshot, benchmark.items
        rows.append(
            [
                benchmark.name,
                benchmark.metric,
                "–" if shots is None else str(shots),
                f"{benchmark.teacher:.4g}",
                f"{benchmark.student:.4g}",
                f"{benchmark.student / benchmark.teacher:.3f}",
                f"{needed:.4f}",
                "–" if items is None else f"{len(items.student):,}",
            ]
        )
    return rows


def _columns(rows: list[list[str]]) -> list[str]:
    """Aligned; the first column to the left, and so the second where it holds names."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]
