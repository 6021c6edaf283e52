"""Tasks of lm-evaluation-harness with three questions, in files, so that no network is needed."""

import json
from pathlib import Path

_QUESTIONS = [
    {"question": "the student and", "choices": [" the teacher", " he", " on"], "answer": 0},
    {"question": "a", "choices": [" token of the shard", " row", " unit is"], "answer": 2},
    {"question": "who she is not with", "choices": [" you", " their cache"], "answer": 1},
]
_COMMON = """
test_split: test
fewshot_split: test
dataset_path: json
target_delimiter: ""
doc_to_text: "{{question}}"
"""
_CHOICE = """
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
_GENERATE = """
output_type: generate_until
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["<|endoftext|>"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def write_tiny_tasks(directory: Path) -> Path:
    """``tiny_choice``, ``tiny_more``, ``tiny_generate``, and the group ``tiny_group`` of two.

    ``tiny_zero`` takes no examples.
    """
    directory.mkdir(parents=True, exist_ok=True)
    questions = directory / "questions.jsonl"
    questions.write_text("".join(json.dumps(question) + "\n" for question in _QUESTIONS))
    files = f"dataset_kwargs: {{data_files: {{test: {questions}}}}}\n"
    tasks = {"tiny_choice": _CHOICE, "tiny_more": _CHOICE, "tiny_generate": _GENERATE}
    tasks["tiny_zero"] = f"{_CHOICE}num_fewshot: 0\n"
    for name, text in tasks.items():
        (directory / f"{name}.yaml").write_text(f"task: {name}\n{_COMMON}{files}{text}")
    (directory / "tiny_group.yaml").write_text(
        "group: tiny_group\ntask: [tiny_choice, tiny_more]\n"
        "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    return directory
