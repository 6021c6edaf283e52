"""What is watched, drawn for a terminal: a run with its figures and curves, or a sweep's runs.

In: runs as their files are now. Out: what Rich prints; and one plain line, for a log.
"""

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.reporting.lines import short
from pipeline.reporting.printable import printable
from pipeline.run_report.table import quantity
from pipeline.watch.curves import curve, sparkline
from pipeline.watch.watched import Watched, WatchedRun, tokens_done
from stages.train_student.tracking.metric_labels import STEP, VALIDATION, MetricLabel

_SCHEDULES = (
    MetricLabel(key="schedule/temperature", format=".3g", progress="T"),
    MetricLabel(key="schedule/beta", format=".3g", progress="β"),
    MetricLabel(key="schedule/learning_rate", format=".3g", progress="learning rate"),
    MetricLabel(key="speed/tokens_per_second", format=",.0f", progress="tokens/s"),
    MetricLabel(key="speed/loader_wait_share", format=".0%", progress="waiting for the loader"),
)
_HIGHER_IS_BETTER = ("validation/agreement", "validation/accuracy")
_NO_BEST = ("validation/teacher_loss", "validation/mlstm_share")
_CURVES = ("train/loss", "train/alignment", "validation/loss")
_SPELLED = str.maketrans({"α": "alpha", "β": "beta"})
_CURVE_HEIGHT = 6
_SPARKLINE = 24
_ORDER = ("running", "failed", "interrupted", "finished", "not begun")
"""Of a sweep's runs: what a small terminal must show comes first."""
_STYLES = {"finished": "green", "running": "cyan", "failed": "red", "interrupted": "yellow"}


class View:
    """``Watched`` as Rich prints it, in the width and the characters that the terminal has."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        watched, is_ascii = self._watched, options.ascii_only
        if watched.is_sweep:
            yield _sweep(watched, is_ascii)
        else:
            (run,) = watched.runs
            yield _run(run, options.max_width, is_ascii)


def plain_line(watched: Watched) -> str:
    """Where it stands, on one line."""
    if watched.is_sweep:
        steps = sum(run.step for run in watched.runs)
        return f"{_counts(watched)} · {steps:,} steps done"
    (run,) = watched.runs
    parts = [run.name, *_standing(run)]
    for label in (*STEP[:1], VALIDATION[0]):
        if (text := _last(run, label)) is not None:
            parts.append(f"{_name(label, is_validation=label in VALIDATION)} {text}")
    return printable(" · ".join(parts), keep="")


def _run(run: WatchedRun, width: int, is_ascii: bool) -> Group:
    parts: list[RenderableType] = [_heading(run)]
    if run.share is not None:
        parts.append(ProgressBar(total=1.0, completed=run.share))
    if run.run is not None:
        parts += [Text(printable(problem, keep=""), style="yellow") for problem in run.run.problems]
    table = _figures(run, is_ascii)
    if table.rows:
        parts += [Text(), table]
    parts += _curve(run, width, is_ascii)
    return Group(*parts)


def _heading(run: WatchedRun) -> Text:
    name = Text(printable(run.name, keep=""), style="bold")
    return Text.assemble(name, " · ", (" · ".join(_standing(run)), _STYLES.get(run.outcome, "")))


def _standing(run: WatchedRun) -> list[str]:
    """State, steps, speed and time, each in a few words."""
    if run.run is None:
        return [f"failed: {run.error}" if run.error else run.outcome.replace("not ", "has not ")]
    of = "" if run.num_steps is None else f" of {run.num_steps:,}"
    share = "" if run.share is None else f" ({run.share:.1%})"
    parts = [_state(run), f"step {run.step:,}{of}{share}"]
    if tokens := tokens_done(run):
        parts.append(f"{short(tokens)} tokens")
    if run.outcome == "running":
        if (speed := run.tokens_per_second) is not None:
            parts.append(f"{short(round(speed))} tokens/s")
        if (seconds := run.seconds_left) is not None:
            parts.append(f"{quantity(seconds, 'seconds')} left")
        if run.seconds_silent is not None:
            parts.append(f"reported {quantity(run.seconds_silent, 'seconds')} ago")
    return parts


def _state(run: WatchedRun) -> str:
    if run.outcome == "failed":
        return f"failed: {run.error}"
    if run.outcome != "interrupted":
        return run.outcome
    if run.run is not None and run.run.state == "unreadable":
        return "unreadable"
    since = "" if run.seconds_silent is None else f" for {quantity(run.seconds_silent, 'seconds')}"
    return f"no report{since}: stopped, or busy with a validation or a checkpoint"


def _figures(run: WatchedRun, is_ascii: bool) -> Table:
    """The newest value of each figure, the best of validations, and its course."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("last", justify="right")
    table.add_column("best", justify="right")
    table.add_column("course")
    for label in (*STEP, *_SCHEDULES, *VALIDATION):
        is_validation = label in VALIDATION
        if (last := _last(run, label)) is not None and run.run is not None:
            values = list(run.run.metrics.of(label.key).values())
            table.add_row(
                _name(label, is_validation=is_validation).translate(_SPELLED if is_ascii else {}),
                last,
                _best(values, label) if is_validation else "",
                sparkline(values, _SPARKLINE, is_ascii=is_ascii),
            )
    return table


def _last(run: WatchedRun, label: MetricLabel) -> str | None:
    value = None if run.run is None else run.run.metrics.last(label.key)
    return None if value is None else format(value, label.format)


def _best(values: list[float], label: MetricLabel) -> str:
    if label.key in _NO_BEST:
        return ""
    return format((max if label.key in _HIGHER_IS_BETTER else min)(values), label.format)


def _name(label: MetricLabel, *, is_validation: bool) -> str:
    name = (label.progress or label.column or label.key).replace("(T={T})", "")
    return f"validation {name}" if is_validation else name


def _curve(run: WatchedRun, width: int, is_ascii: bool) -> list[RenderableType]:
    """The loss of training, or what else there is, as a curve with its range."""
    series = {} if run.run is None else run.run.metrics.by_name
    for key in _CURVES:
        values = series.get(key, {})
        if len(values) > 1:
            first, last = next(iter(values)), next(reversed(values))
            limits = f"{min(values.values()):.4g} to {max(values.values()):.4g}"
            heading = f"{key.replace('/', ' ')}, steps {first:,} to {last:,}, {limits}"
            lines = curve(
                list(values.values()), max(8, width - 2), _CURVE_HEIGHT, is_ascii=is_ascii
            )
            return [Text(), Text(heading, style="bold"), Text("\n".join(lines), no_wrap=True)]
    return []


def _sweep(watched: Watched, is_ascii: bool) -> Group:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("run", overflow="fold")
    for heading in ("state", "steps", "left"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("loss", "validation", "KL"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("course", no_wrap=True)
    for run in sorted(watched.runs, key=lambda each: _ORDER.index(each.outcome)):
        losses = [] if run.run is None else list(run.run.metrics.of("train/loss").values())
        left = "" if run.seconds_left is None else quantity(run.seconds_left, "seconds")
        outcome = "silent" if run.outcome == "interrupted" else run.outcome
        table.add_row(
            Text(printable(run.name, keep="")),
            Text(outcome, style=_STYLES.get(run.outcome, "dim")),
            "" if run.share is None else f"{run.share:.0%}",
            left,
            *(_last(run, label) or "" for label in (STEP[0], VALIDATION[0], VALIDATION[2])),
            sparkline(losses, _SPARKLINE // 2, is_ascii=is_ascii),
        )
    errors = [
        Text(printable(f"{run.name} failed: {run.error}", keep=""), style="red")
        for run in watched.runs
        if run.error and run.outcome == "failed"
    ]
    return Group(Text(_counts(watched), style="bold"), Text(), table, *errors)


def _counts(watched: Watched) -> str:
    found = [run.outcome for run in watched.runs]
    words = {"interrupted": "silent"}
    counts = ", ".join(
        f"{found.count(each)} {words.get(each, each)}" for each in dict.fromkeys(found)
    )
    return f"{printable(str(watched.path), keep='')}: {len(found)} runs: {counts}"
