"""The README.md of a merged student: what it was merged of, how to load it.

In: the parents' settings and the ancestry that config.json has. Out: Markdown with the front matter
that the Hub reads. As in ``export/model_card``, the license is left to the teacher's page.
"""

import json
from collections.abc import Sequence
from typing import Any

from stages.train_student.export.model_card import plain_name, usage


def merged_card(config: Any, ancestry: Sequence[dict[str, Any]], how: str) -> str:
    """The card; ``how`` says in a sentence where the weights of the sum come from."""
    teacher = config.teacher
    name = plain_name(teacher["source"]) if teacher.get("revision") else "a model not on the Hub"
    rows = [
        f"| {plain_name(parent['name'])} | {parent['weight']:.6g} | "
        f"{'–' if parent['num_steps'] is None else format(parent['num_steps'], ',')} | "
        f"{'–' if parent['cache_id'] is None else plain_name(parent['cache_id'])} | "
        f"`{plain_name(parent['weights_sha256'])}` |"
        for parent in ancestry
    ]
    table = "\n".join(
        ["| student | λ | steps | cache | weights SHA-256 |", "|---|---|---|---|---|", *rows]
    )
    sections = [
        _front_matter(teacher) + f"# A merge of {len(ancestry)} xLSTM students of {name}",
        "θ = Σ λ θ_i over students of one origin, in float32 (linear merging, as in arXiv "
        f"2603.15590, equation 14); frozen parts are equal in all of them. {how}",
        usage(config.model_type),
        f"## Merged from\n\n{table}",
        f"## Training data\n\nThat of the students above. Teacher: {name}, weights SHA-256 "
        f"`{plain_name(teacher['weights_sha256'])}`.",
        f"## License\n\nThe license of the teacher, {name}, applies to its embedding and head, "
        "which are part of this model.",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(teacher: dict[str, str]) -> str:
    lines = ["library_name: transformers", "pipeline_tag: text-generation"]
    lines.append("tags: [xlstm, distillation, merge]")
    if teacher.get("revision"):
        lines.append(f"base_model: {json.dumps(teacher['source'])}")
    return "\n".join(["---", *lines, "---", "", ""])
