"""A judgement as a page: one HTML file that needs nothing else and fetches nothing."""

from html import escape
from pathlib import Path

from pipeline.judgement.curve_plot import svg
from pipeline.judgement.judgement import Judgement
from pipeline.judgement.judgement_text import summary_lines

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem }
svg { max-width: 100%; height: auto }
table { border-collapse: collapse }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left }
"""
_HEADINGS = ("benchmark", "metric", "shots", "teacher", "student", "ratio", "needs α")


def write_page(judgement: Judgement, target: Path) -> None:
    """Write the page, whole or not at all."""
    from cache_format.storage.atomic import publish_bytes

    publish_bytes(target, page(judgement).encode("utf-8"))


def page(judgement: Judgement) -> str:
    """The page, whose names come from files of whoever wrote them, and are only text here."""
    title = f"Win-and-Tie on {escape(judgement.set_name)} ({len(judgement.benchmarks)} benchmarks)"
    summary = "<br>\n".join(escape(line) for line in summary_lines(judgement))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>'
        f"\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n<p>{summary}</p>\n"
        f"{svg(judgement)}\n{_table(judgement)}\n</body>\n</html>\n"
    )


def _table(judgement: Judgement) -> str:
    rows = [f"<tr>{''.join(f'<th>{heading}</th>' for heading in _HEADINGS)}</tr>"]
    for benchmark, needed in zip(judgement.benchmarks, judgement.tolerances, strict=True):
        shots = benchmark.num_fewshot
        cells = [
            escape(benchmark.name),
            escape(benchmark.metric),
            "–" if shots is None else str(shots),
            f"{benchmark.teacher:.4g}",
            f"{benchmark.student:.4g}",
            f"{benchmark.student / benchmark.teacher:.3f}",
            f"{needed:.4f}",
        ]
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return "<table>\n" + "\n".join(rows) + "\n</table>"
