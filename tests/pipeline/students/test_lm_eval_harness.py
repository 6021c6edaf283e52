"""lm-evaluation-harness on a tiny student, offline: its figures against our own."""

import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from pipeline.commands.evaluate import evaluate
from pipeline.judgement.suite import SuiteTask
from pipeline.students.evaluated_model import load_evaluated_student
from pipeline.students.lm_eval_harness import (
    HarnessOptions,
    _max_length,
    _metrics_of,
    metrics_by_task,
    require_harness,
    tasks_text,
)
from pipeline.students.task_results import run_tasks
from tests.support import ROOT
from tests.support.students import publish_student

_EXAMPLES: list[dict[str, Any]] = [
    {
        "question": "the student and",
        "choices": [" the teacher has been", " he", " on"],
        "answer": 0,
        "text": "the student and the teacher were one.",
    },
    {
        "question": "a",
        "choices": [" token of the shard", " row", " unit is"],
        "answer": 2,
        "text": "a row of them has been at 東京, which they had not.",
    },
    {
        "question": "who she is not with",
        "choices": [" you", " their cache", " 1999"],
        "answer": 1,
        "text": "naïve",
    },
]
_COMMON = """
test_split: test
dataset_path: json
target_delimiter: ""
"""
_TASKS = {
    "tiny_choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "tiny_last": """
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
metric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false}]
""",
    "tiny_rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: byte_perplexity, higher_is_better: false}]
""",
    "tiny_generate": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{expected}}"
generation_kwargs: {until: ["<|endoftext|>"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}


def _lacks_harness() -> str:
    try:
        require_harness()
    except ValueError as error:
        return str(error)
    return ""


needs_harness = pytest.mark.skipif(bool(_lacks_harness()), reason=_lacks_harness() or "none")


class Student:
    """The student by itself: one text at a time, the parallel form, nothing padded."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoTokenizer

        from stages.train_student.modeling.distil_xlstm.modeling import DistilXLSTMForCausalLM

        self.model: Any = DistilXLSTMForCausalLM.from_pretrained(path).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(path)

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text)["input_ids"]
        return found

    @torch.no_grad()
    def logprob(self, context: list[int], continuation: list[int]) -> float:
        ids = torch.tensor([context + continuation])
        logprobs: Tensor = self.model(ids[:, :-1]).logits.double().log_softmax(-1)
        found = logprobs[0].gather(1, ids[0, 1:, None])
        return float(found[-len(continuation) :].sum())

    @torch.no_grad()
    def greedy(self, text: str, num_new: int) -> str:
        ids = torch.tensor([self.ids(text)])
        start = ids.shape[1]
        for _ in range(num_new):
            ids = torch.cat([ids, self.model(ids).logits[:, -1:].argmax(-1)], 1)
        decoded: str = self.tokenizer.decode(ids[0, start:])
        return decoded


@pytest.fixture(scope="module")
def run(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_student(tiny_cache, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def tasks(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files; two of the three generations are as expected."""
    directory = tmp_path_factory.mktemp("tasks")
    student = Student(run / "model")
    expected = [student.greedy(each["question"], 6) for each in _EXAMPLES[:2]] + ["other"]
    lines = [
        json.dumps(example | {"expected": text})
        for example, text in zip(_EXAMPLES, expected, strict=True)
    ]
    (directory / "examples.jsonl").write_text("\n".join(lines) + "\n")
    files = f"dataset_kwargs: {{data_files: {{test: {directory / 'examples.jsonl'}}}}}\n"
    for name, text in _TASKS.items():
        (directory / f"{name}.yaml").write_text(f"task: {name}\n{_COMMON}{files}{text}")
    return directory


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def only_own_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness reads thousands of task files otherwise, which takes seconds."""
    import lm_eval.tasks

    own = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", own)


def expected_metrics(run: Path) -> dict[str, float]:
    student = Student(run / "model")
    eos = student.tokenizer.eos_token_id
    num_right, of_answers, of_texts, num_bytes = 0, [], 0.0, 0
    for example in _EXAMPLES:
        question = student.ids(example["question"])
        scores = [
            student.logprob(question, student.ids(example["question"] + choice)[len(question) :])
            for choice in example["choices"]
        ]
        num_right += scores.index(max(scores)) == example["answer"]
        of_answers.append(scores[example["answer"]])
        of_texts += student.logprob([eos], student.ids(example["text"]))
        num_bytes += len(example["text"].encode())
    return {
        "acc": num_right / len(_EXAMPLES),
        "perplexity": math.exp(-sum(of_answers) / len(_EXAMPLES)),
        "byte_perplexity": math.exp(-of_texts / num_bytes),
    }


@needs_harness
@pytest.mark.usefixtures("only_own_tasks")
@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_kind_of_request_equals_our_own_computation(
    run: Path, tasks: Path, batch_size: int
) -> None:
    """Texts of several lengths in a batch: padded on the right, or on the left to generate."""
    options = HarnessOptions(include_path=tasks, limit=None, batch_size=batch_size, device="cpu")
    chosen = [SuiteTask(task=name) for name in _TASKS]
    found = metrics_by_task(run_tasks(load_evaluated_student(run), chosen, options))
    expected = expected_metrics(run)
    assert found["tiny_choice"]["acc"] == pytest.approx(expected["acc"])
    assert found["tiny_last"]["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-5)
    assert found["tiny_rolling"]["byte_perplexity"] == pytest.approx(
        expected["byte_perplexity"], rel=1e-5
    )
    assert found["tiny_generate"]["exact_match"] == pytest.approx(2 / 3)
    assert "tiny_generate  exact_match  0.6667 ± 0.3333" in tasks_text(found)


@pytest.mark.slow
@needs_harness
def test_the_harness_s_own_command_needs_nothing_imported(
    run: Path, tasks: Path, tmp_path: Path
) -> None:
    home = {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    command = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"),
        *("--model_args", f"pretrained={run / 'model'},trust_remote_code=True"),
        *("--tasks", "tiny_last", "--include_path", str(tasks), "--batch_size", "3"),
        *("--output_path", str(tmp_path / "results")),
    ]
    done = subprocess.run(
        command, env=os.environ | home, cwd=tmp_path, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "results").rglob("results_*.json")
    found = json.loads(file.read_text())["results"]["tiny_last"]["perplexity,none"]
    assert found == pytest.approx(expected_metrics(run)["perplexity"], rel=1e-5)


@needs_harness
@pytest.mark.usefixtures("only_own_tasks")
def test_evaluate_tasks_prints_a_table(run: Path, tasks: Path, tiny_cache: Path) -> None:
    result = CliRunner().invoke(
        evaluate,
        [
            *(str(run), "--tasks", "tiny_last, tiny_choice", "--include-path", str(tasks)),
            *("--limit", "2", "--device", "cpu", "--json", "--cache", str(tiny_cache)),
            *("--rows", "2"),
        ],
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["tasks"].keys() == {"tiny_last", "tiny_choice"}
    assert found["tasks"]["tiny_choice"]["acc"] in (0.0, 0.5, 1.0)
    assert found["rows"] == 2


@needs_harness
@pytest.mark.usefixtures("only_own_tasks")
def test_a_task_that_is_not_known_is_named(run: Path, tasks: Path) -> None:
    options = HarnessOptions(include_path=tasks, limit=None, batch_size=1, device="cpu")
    with pytest.raises(ValueError, match="has no task 'tiny_nothing'"):
        run_tasks(load_evaluated_student(run), [SuiteTask(task="tiny_nothing")], options)


def test_without_the_harness_the_command_to_install_it_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.students.lm_eval_harness.find_spec", lambda name: None)
    result = CliRunner().invoke(evaluate, [str(run), "--tasks", "arc_easy"])
    assert isinstance(result.exception, ValueError)
    assert "pip install 'lm_eval[hf]'" in str(result.exception)


def test_a_model_with_few_positions_is_asked_in_as_many() -> None:
    positions = SimpleNamespace(max_position_embeddings=128)
    assert _max_length(positions, 4096) == 128
    assert _max_length(positions, 64) == 64
    assert _max_length(SimpleNamespace(), 4096) == 4096
    assert _max_length(positions, None) is None


def test_what_is_no_number_is_left_out() -> None:
    found = {"acc,none": 1.0, "acc_stderr,none": math.nan, "ppl,none": math.inf, "alias": "a"}
    assert _metrics_of(found) == {"acc": 1.0}
