"""Student and teacher on the same benchmarks: which scores are compared, after every refusal.

In: results of both, and the set of benchmarks. Out: a ``PairedBenchmark`` each, in the order of the
set. What would make the comparison unfair or meaningless is refused, and the error says which
benchmark and what to do.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.judgement.bootstrap import PairedItems
from pipeline.judgement.lm_eval_results import BenchmarkResult, metric_name
from pipeline.judgement.logged_samples import Items, read_items
from pipeline.judgement.suite import Suite

_PREFERRED = (
    *("acc_norm", "exact_match,flexible-extract", "exact_match", "math_verify"),
    *("pass@1", "pass_at_1", "prompt_level_strict_acc", "acc"),
)
"""The metric of a benchmark that has several, where none is named: the first of these."""
_SCORE_ROUNDING = 1e-6
"""How far the mean of the items may be from the benchmark's score: what a file's decimals lose."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkSet:
    """What is judged by."""

    name: str
    metrics: Mapping[str, str | None]
    """The benchmarks, and where it is named the metric of each."""
    num_fewshot: Mapping[str, int | None]
    """The shots that the set asks for, where it does."""


@dataclass(frozen=True, kw_only=True)
class PairedBenchmark:
    """A benchmark with the scores of both."""

    name: str
    metric: str
    student: float
    teacher: float
    num_fewshot: int | None
    items: PairedItems | None
    """None where they were not logged for both."""
    note: str = ""
    """Why there are no items although they were logged."""


def suite_set(suite: Suite) -> BenchmarkSet:
    """The benchmarks of a suite."""
    return BenchmarkSet(
        name=suite.name,
        metrics={
            task.task: None if task.metric is None else metric_name(task.metric)
            for task in suite.tasks
        },
        num_fewshot={task.task: task.num_fewshot for task in suite.tasks},
    )


def named_set(benchmarks: Mapping[str, str | None]) -> BenchmarkSet:
    """Benchmarks named one by one, each with its metric or None."""
    metrics = {name: metric and metric_name(metric) for name, metric in benchmarks.items()}
    return BenchmarkSet(name="given benchmarks", metrics=metrics, num_fewshot={})


def common_set(
    student: Mapping[str, BenchmarkResult], teacher: Mapping[str, BenchmarkResult]
) -> BenchmarkSet:
    """All benchmarks of the files. Raises ValueError where one of the two lacks some."""
    for who, lacking, having in (("student", student, teacher), ("teacher", teacher, student)):
        if missing := sorted(having.keys() - lacking.keys()):
            raise ValueError(
                f"the {who}'s results lack {', '.join(missing)}. Evaluate the {who} on them too, "
                "or choose the set with --suite or --benchmark: which benchmarks are in it decides "
                "the outcome."
            )
    if not teacher:
        raise ValueError(
            "the teacher's results hold no benchmark with a score. Evaluate teacher and student on "
            "a suite first, with `pipeline evaluate --tasks`."
        )
    return BenchmarkSet(name="all in the files", metrics=dict.fromkeys(teacher), num_fewshot={})


def pair_scores(
    student: Mapping[str, BenchmarkResult],
    teacher: Mapping[str, BenchmarkResult],
    chosen: BenchmarkSet,
) -> list[PairedBenchmark]:
    """The scores of both on each benchmark of ``chosen``. Raises ValueError; see the top."""
    for who, results in (("student", student), ("teacher", teacher)):
        if missing := [name for name in chosen.metrics if name not in results]:
            found = ", ".join(sorted(results)) or "nothing"
            raise ValueError(
                f"{chosen.name}: the {who}'s results lack {', '.join(missing)}; they hold {found}. "
                "Add the file that has them, or evaluate them."
            )
    return [
        _pair(student[name], teacher[name], metric, chosen.num_fewshot.get(name))
        for name, metric in chosen.metrics.items()
    ]


def _pair(
    student: BenchmarkResult,
    teacher: BenchmarkResult,
    wanted: str | None,
    wanted_shots: int | None,
) -> PairedBenchmark:
    name = teacher.name
    metric = wanted or _choose_metric(teacher)
    for who, result in (("student", student), ("teacher", teacher)):
        _require_score(who, result, metric)
    _require_alike(student, teacher, "version of the task", lambda result: result.version)
    _require_alike(student, teacher, "number of examples (shots)", lambda r: r.num_fewshot)
    _require_alike(student, teacher, "number of items", lambda result: result.num_items)
    shots = teacher.num_fewshot
    if None not in (wanted_shots, shots) and wanted_shots != shots:
        raise ValueError(
            f"{name}: the set asks for {wanted_shots} examples (shots), but the results have "
            f"{shots}. Evaluate both with the suite, or judge them as --benchmark {name}."
        )
    if teacher.metrics[metric] == 0:
        raise ValueError(
            f"{name}: the teacher's {metric} is 0, so every student ties and the benchmark says "
            "nothing. Leave it out: name the others with --benchmark."
        )
    items, note = _paired_items(student, teacher, metric)
    return PairedBenchmark(
        name=name,
        metric=metric,
        student=student.metrics[metric],
        teacher=teacher.metrics[metric],
        num_fewshot=shots,
        items=items,
        note=note,
    )


def _choose_metric(teacher: BenchmarkResult) -> str:
    rising = [
        metric
        for metric in teacher.metrics
        if teacher.higher_is_better.get(metric.partition(",")[0], True)
    ]
    if len(rising) == 1:
        return rising[0]
    for preferred in _PREFERRED:
        if preferred in rising:
            return preferred
        filtered = [metric for metric in rising if metric.partition(",")[0] == preferred]
        if len(filtered) == 1:
            return filtered[0]
    if not rising:
        metric = next(iter(teacher.metrics))
        raise ValueError(
            f"{teacher.name}: {metric}: lower is better, but a win is a higher score. Leave the "
            "benchmark out: name the others with --benchmark."
        )
    raise ValueError(
        f"{teacher.name}: has several metrics: {', '.join(rising)}. Say which one counts: "
        f"--benchmark {teacher.name}={rising[0]}"
    )


def _require_score(who: str, result: BenchmarkResult, metric: str) -> None:
    where = f"{result.file}: {result.name}"
    if metric not in result.metrics:
        raise ValueError(
            f"{where}: the {who} has no {metric}; it has {', '.join(result.metrics)}. Both have to "
            "be judged by the same metric: evaluate both alike, or name one with --benchmark "
            f"{result.name}=METRIC."
        )
    if not result.higher_is_better.get(metric.partition(",")[0], True):
        raise ValueError(
            f"{where}: {metric}: lower is better, but a win is a higher score. Name another "
            "metric, or leave the benchmark out."
        )
    score = result.metrics[metric]
    if not math.isfinite(score) or score < 0:
        raise ValueError(
            f"{where}: the {who}'s {metric} is {score}, expected a number that is not negative. "
            "Evaluate it again, or leave the benchmark out: name the others with --benchmark."
        )


def _require_alike(
    student: BenchmarkResult,
    teacher: BenchmarkResult,
    what: str,
    value: Callable[[BenchmarkResult], object],
) -> None:
    """Raise where both files tell ``what``, and it differs."""
    own, other = value(student), value(teacher)
    if own is not None and other is not None and own != other:
        raise ValueError(
            f"{teacher.name}: the {what} differs: {own} for the student ({student.file}), {other} "
            f"for the teacher ({teacher.file}). Evaluate both alike."
        )


def _paired_items(
    student: BenchmarkResult, teacher: BenchmarkResult, metric: str
) -> tuple[PairedItems | None, str]:
    own, other = read_items(student, metric), read_items(teacher, metric)
    if own is None or other is None:
        return None, ""
    if problem := _differ(own, other):
        raise ValueError(
            f"{teacher.name}: student and teacher answered other questions: {problem}. Evaluate "
            "both with the same version of the task, or move the samples_*.jsonl away."
        )
    keys = sorted(own)
    paired = PairedItems(
        student=np.array([own[key][0] for key in keys]),
        teacher=np.array([other[key][0] for key in keys]),
    )
    for result, scores in ((student, paired.student), (teacher, paired.teacher)):
        if abs(scores.mean() - result.metrics[metric]) > _SCORE_ROUNDING:
            return None, f"{teacher.name}: {metric} is no mean of its items, so they are not used."
    return paired, ""


def _differ(own: Items, other: Items) -> str:
    if own.keys() != other.keys():
        task, number = min(own.keys() ^ other.keys())
        return f"only one of them has item {number} of {task}"
    for key in sorted(own):
        hashes = own[key][1], other[key][1]
        if None not in hashes and hashes[0] != hashes[1]:
            return f"item {key[1]} of {key[0]} has another hash"
    return ""
