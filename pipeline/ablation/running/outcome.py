"""What came of a sweep: a table of its recipes over seeds, by the code that makes reports."""

from pathlib import Path
from shlex import quote

from pipeline.ablation.planning.planned_runs import Plan
from pipeline.run_report.recorded.recorded_run import RecordedRun, read_run
from pipeline.run_report.recorded.seed_groups import comparable, group_runs
from pipeline.run_report.results_tables import results_table
from pipeline.run_report.table_text import table_text

_SHOWN = ("recipe", "runs", "loss", "KL")


def recorded_runs(plan: Plan, out: Path) -> list[RecordedRun]:
    """The runs of ``plan`` that have begun."""
    return [
        read_run(out / run.name, run.name)
        for run in plan.runs
        if (out / run.name / "run.json").is_file()
    ]


def outcome_text(plan: Plan, out: Path) -> str:
    """The table, best first, and how to see more. Empty where nothing has begun."""
    runs = [run for run in recorded_runs(plan, out) if run.record is not None]
    if not runs:
        return ""
    sets = comparable(group_runs(runs), "validation/loss", is_lower_better=True)
    tables = [table_text(results_table(found), _SHOWN) for found in sets]
    report = f"pipeline report {quote(str(out))} --out {quote(f'{out}-report')}"
    return "\n\n".join([*tables, f"Curves, costs and settings:\n  {report}"])
