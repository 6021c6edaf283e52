"""What may be compared, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.judgement.lm_eval_results import BenchmarkResult, read_results
from pipeline.judgement.paired_scores import common_set, named_set, pair_scores, suite_set
from pipeline.judgement.suite import Suite, SuiteTask
from tests.support.result_files import write_results, write_samples


class Pair:
    """Results of two models in two directories."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def results(
        self, who: str, scores: dict[str, float], **more: Any
    ) -> dict[str, BenchmarkResult]:
        return read_results([write_results(self.root / who / "results.json", scores, **more)])

    def samples(self, who: str, scores: list[float]) -> Path:
        return write_samples(self.root / who / "samples_a.jsonl", scores)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def metrics(**scores: float) -> dict[str, Any]:
    return {"results": {"a": {f"{name},none": score for name, score in scores.items()}}}


def test_all_in_the_files_is_a_set_if_both_have_the_same(pair: Pair) -> None:
    teacher = pair.results("teacher", {"b": 0.5, "a": 0.25})
    student = pair.results("student", {"a": 0.75, "b": 0.5})
    found = pair_scores(student, teacher, common_set(student, teacher))
    assert [(each.name, each.student, each.teacher) for each in found] == [
        ("b", 0.5, 0.5),
        ("a", 0.75, 0.25),
    ]
    with pytest.raises(ValueError, match="the student's results lack b"):
        common_set(pair.results("student", {"a": 0.75}), teacher)
    with pytest.raises(ValueError, match="the teacher's results lack c"):
        common_set(pair.results("student", {"a": 1, "b": 1, "c": 1}), teacher)
    with pytest.raises(ValueError, match="no benchmark with a score"):
        common_set({}, {})


def test_a_benchmark_of_the_set_that_one_lacks_is_named(pair: Pair) -> None:
    both = pair.results("student", {"a": 1.0, "b": 1.0})
    one = pair.results("teacher", {"a": 1.0})
    with pytest.raises(ValueError, match="the teacher's results lack b; they hold a"):
        pair_scores(both, one, named_set({"a": None, "b": None}))
    with pytest.raises(ValueError, match="the student's results lack c; they hold a, b"):
        pair_scores(both, one, named_set({"c": None}))


@pytest.mark.parametrize(
    ("of_teacher", "expected"),
    [
        ({"acc": 0.5, "acc_norm": 0.6}, "acc_norm"),
        ({"f1": 0.5}, "f1"),
        (
            {"prompt_level_loose_acc": 0.5, "prompt_level_strict_acc": 0.4},
            "prompt_level_strict_acc",
        ),
    ],
)
def test_the_metric_of_a_benchmark_with_several(
    pair: Pair, of_teacher: dict[str, float], expected: str
) -> None:
    more = metrics(**of_teacher)
    student, teacher = pair.results("student", {}, **more), pair.results("teacher", {}, **more)
    (found,) = pair_scores(student, teacher, common_set(student, teacher))
    assert found.metric == expected


def test_a_metric_is_named_with_its_filter(pair: Pair) -> None:
    results = {"a": {"exact_match,strict": 0.1, "exact_match,loose": 0.9}}
    student, teacher = (pair.results(who, {}, results=results) for who in ("student", "teacher"))
    with pytest.raises(ValueError, match="--benchmark a=exact_match,strict"):
        pair_scores(student, teacher, named_set({"a": None}))
    (found,) = pair_scores(student, teacher, named_set({"a": "exact_match,loose"}))
    assert found.student == 0.9


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (metrics(acc=0.5), metrics(f1=0.5), "the student has no f1; it has acc"),
        (metrics(acc=float("nan")), metrics(acc=0.5), "student's acc is nan, expected a number"),
        (metrics(acc=0.5), metrics(acc=float("nan")), "teacher's acc is nan, expected a number"),
        (metrics(acc=-0.5), metrics(acc=0.5), "student's acc is -0.5, expected"),
        (metrics(acc=0.5), metrics(acc=0.0), "teacher's acc is 0, so every student ties"),
        (
            metrics(acc=0.5) | {"n-shot": {"a": 5}},
            metrics(acc=0.5) | {"n-shot": {"a": 0}},
            r"number of examples \(shots\) differs: 5 for the student",
        ),
        (
            metrics(acc=0.5) | {"versions": {"a": 1}},
            metrics(acc=0.5) | {"versions": {"a": 2}},
            "version of the task differs: 1 for the student",
        ),
        (
            metrics(acc=0.5) | {"n-samples": {"a": {"effective": 10}}},
            metrics(acc=0.5) | {"n-samples": {"a": {"effective": 100}}},
            "number of items differs: 10 for the student",
        ),
        (
            metrics(ppl=9.0) | {"higher_is_better": {"a": {"ppl": False}}},
            metrics(ppl=8.0) | {"higher_is_better": {"a": {"ppl": False}}},
            "ppl: lower is better",
        ),
    ],
)
def test_refusals(
    pair: Pair, student: dict[str, Any], teacher: dict[str, Any], message: str
) -> None:
    own, other = pair.results("student", {}, **student), pair.results("teacher", {}, **teacher)
    with pytest.raises(ValueError, match=message):
        pair_scores(own, other, named_set({"a": None}))


def test_a_named_metric_whose_lower_values_are_better_is_refused(pair: Pair) -> None:
    more = metrics(ppl=9.0, acc=0.5) | {"higher_is_better": {"a": {"ppl": False}}}
    student, teacher = (pair.results(who, {}, **more) for who in ("student", "teacher"))
    with pytest.raises(ValueError, match="ppl: lower is better"):
        pair_scores(student, teacher, named_set({"a": "ppl"}))


def test_a_student_of_zero_loses_and_is_not_refused(pair: Pair) -> None:
    student, teacher = pair.results("student", {"a": 0.0}), pair.results("teacher", {"a": 0.5})
    (found,) = pair_scores(student, teacher, common_set(student, teacher))
    assert found.student == 0.0


def test_the_shots_of_a_suite_are_required(pair: Pair) -> None:
    student, teacher = pair.results("student", {"a": 0.5}), pair.results("teacher", {"a": 0.5})
    suite = Suite(name="mine", tasks=(SuiteTask(task="a", num_fewshot=5, metric="acc,none"),))
    with pytest.raises(ValueError, match=r"asks for 5 examples \(shots\), but the results have 0"):
        pair_scores(student, teacher, suite_set(suite))


def test_items_are_paired_by_document(pair: Pair) -> None:
    student, teacher = pair.results("student", {"a": 0.5}), pair.results("teacher", {"a": 0.75})
    chosen = named_set({"a": None})
    pair.samples("student", [1, 0, 1, 0])
    assert pair_scores(student, teacher, chosen)[0].items is None
    pair.samples("teacher", [1, 1, 1, 0])
    items = pair_scores(student, teacher, chosen)[0].items
    assert items is not None
    assert items.student.tolist() == [1, 0, 1, 0]
    assert items.teacher.tolist() == [1, 1, 1, 0]


def test_other_questions_are_refused(pair: Pair) -> None:
    student, teacher = pair.results("student", {"a": 0.5}), pair.results("teacher", {"a": 0.75})
    pair.samples("student", [1, 0])
    path = pair.samples("teacher", [1, 1, 1, 0])
    with pytest.raises(ValueError, match="only one of them has item 2 of a"):
        pair_scores(student, teacher, named_set({"a": None}))
    pair.samples("student", [1, 0, 1, 0])
    path.write_text(path.read_text().replace("hash 3", "another"))
    with pytest.raises(ValueError, match="item 3 of a has another hash"):
        pair_scores(student, teacher, named_set({"a": None}))


def test_a_score_that_is_no_mean_of_its_items_has_none(pair: Pair) -> None:
    student, teacher = pair.results("student", {"a": 0.5}), pair.results("teacher", {"a": 0.7})
    pair.samples("student", [1, 0])
    pair.samples("teacher", [1, 0])
    (found,) = pair_scores(student, teacher, named_set({"a": None}))
    assert found.items is None
    assert found.note == "a: acc is no mean of its items, so they are not used."
