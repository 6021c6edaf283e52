"""Result files: what is read of them, and what is refused."""

import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.judgement.lm_eval_results import read_results
from pipeline.judgement.logged_samples import read_items
from tests.support.result_files import write_results, write_samples

_GROUPED: dict[str, Any] = {
    "results": {
        "mmlu": {"acc,none": 0.5, "alias": "mmlu"},
        "mmlu_stem": {"acc,none": 0.4},
        "mmlu_maths": {"acc,none": 0.4, "acc_stderr,none": 0.1},
        "mmlu_law": {"acc,none": 0.6, "acc_norm,none": 0.7, "exact,strict": 0.2},
        "tagged": {"alias": "tagged", " ": " "},
        "other": {"acc,none": math.nan},
    },
    "group_subtasks": {
        "mmlu": ["mmlu_stem", "mmlu_law"],
        "mmlu_stem": ["mmlu_maths"],
        "tagged": ["other"],
    },
    "versions": {"mmlu": 2, "other": "Yaml"},
    "n-shot": {"mmlu_maths": 5, "mmlu_law": 5},
    "higher_is_better": {"mmlu_maths": {"acc": True}, "other": {"acc": False}},
    "n-samples": {
        "mmlu_maths": {"original": 100, "effective": 10},
        "mmlu_law": {"original": 100, "effective": 20},
    },
}


def test_a_group_with_scores_stands_for_its_tasks(tmp_path: Path) -> None:
    found = read_results([write_results(tmp_path / "a.json", {}, **_GROUPED)])
    assert found.keys() == {"mmlu", "other"}  # a tag has no scores: its tasks do
    mmlu = found["mmlu"]
    assert mmlu.metrics == {"acc": 0.5}
    assert mmlu.tasks == ("mmlu_law", "mmlu_maths")
    assert (mmlu.num_fewshot, mmlu.version, mmlu.num_items) == (5, "2", 30)
    assert math.isnan(found["other"].metrics["acc"])
    assert (found["other"].version, found["other"].num_items) == (None, None)
    assert found["other"].higher_is_better == {"acc": False}


def test_a_directory_of_pipeline_evaluate_is_its_merged_file(tmp_path: Path) -> None:
    write_results(tmp_path / "results.json", {"a": 0.5})
    assert read_results([tmp_path])["a"].metrics == {"acc": 0.5}


def test_filters_are_part_of_a_metric_and_errors_are_not(tmp_path: Path) -> None:
    results = {"a": {"exact_match,strict": 1, "exact_match,none": 0.5, "acc_stderr,none": 0.1}}
    found = read_results([write_results(tmp_path / "a.json", {}, results=results)])
    assert found["a"].metrics == {"exact_match,strict": 1.0, "exact_match": 0.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a JSON file"),
        ("[1]", "expected a JSON object, found list"),
        ("{}", "not a result file of lm-evaluation-harness"),
        ('{"results": {"a": 1}}', "not a result file of lm-evaluation-harness"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_results([tmp_path / "a.json"])


def test_a_directory_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"results\.json: there is no such file"):
        read_results([tmp_path])


def test_a_benchmark_in_two_files_is_refused(tmp_path: Path) -> None:
    places = [write_results(tmp_path / name, {"a": 0.5}) for name in ("x.json", "y.json")]
    with pytest.raises(ValueError, match=r"y\.json: a: also in .*x\.json"):
        read_results(places)


def test_items_are_found_by_the_date_of_the_results_and_by_filter(tmp_path: Path) -> None:
    path = write_results(tmp_path / "results_2026-01-02.json", {"a": 0.5})
    result = read_results([path])["a"]
    assert read_items(result, "acc") is None
    write_samples(tmp_path / "samples_a_2026-01-01.jsonl", [1.0])
    assert read_items(result, "acc") is None
    write_samples(tmp_path / "samples_a_2026-01-02.jsonl", [1.0, 0.0])
    items = {("a", 0): (1.0, "hash 0"), ("a", 1): (0.0, "hash 1")}
    assert read_items(result, "acc") == items
    assert read_items(result, "acc,strict") is None
    assert read_items(result, "acc_norm") is None


def test_a_damaged_line_of_items_is_named(tmp_path: Path) -> None:
    result = read_results([write_results(tmp_path / "results.json", {"a": 0.5})])["a"]
    path = write_samples(tmp_path / "samples_a.jsonl", [1.0, 0.0])
    path.write_text(path.read_text() + '{"doc_id": ')
    with pytest.raises(ValueError, match=r"samples_a\.jsonl, line 3: damaged"):
        read_items(result, "acc")


def test_items_of_a_task_whose_name_is_no_file_name_are_found(tmp_path: Path) -> None:
    result = read_results([write_results(tmp_path / "results.json", {"org/a b": 1.0})])["org/a b"]
    assert read_items(result, "acc") is None
    write_samples(tmp_path / "samples_org_a_b.jsonl", [1.0])
    assert read_items(result, "acc") == {("org/a b", 0): (1.0, "hash 0")}


def test_infinity_is_read_as_what_it_is(tmp_path: Path) -> None:
    path = write_results(tmp_path / "results.json", {"a": float("-inf")})
    assert read_results([path])["a"].metrics["acc"] == float("-inf")


def test_a_score_that_is_a_string_is_named(tmp_path: Path) -> None:
    path = write_results(tmp_path / "results.json", {"a": 0.5})
    path.write_text(path.read_text().replace("0.5", '"0.4"'))
    with pytest.raises(ValueError, match=r"a: acc,none: expected a number, found the string '0.4'"):
        read_results([path])
