"""The README.md of a published student: what it is, what it learned from, how to load it.

In: the student, its caches, its recipe and its last validation. Out: Markdown with the front matter
that the Hub reads.

The license is left to the teacher's page: most weights are the teacher's own, and this program does
not know its terms.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from cache_format.metadata.spec import CacheSpec
from stages.recipe_table import recipe_table
from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.mixture import CacheMixture
from stages.train_student.students.registry import settings_class, student_kind
from stages.train_student.students.student import Student
from stages.train_student.tracking.metric_labels import VALIDATION

_LOAD = """\
With `pip install torch transformers "xlstm>=2.0.5,<2.1"`:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

path = "."  # this directory, or its name on the Hub
model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
inputs = tokenizer(["The cell"], return_tensors="pt")
print(tokenizer.batch_decode(model.generate(**inputs, max_new_tokens=32)))
```

The model's code is in this directory. If the package xlstm-distill is installed, the package's code
is used after `import stages.train_student.students.{kind}`, without `trust_remote_code`. It
includes GPU kernels that are not in this directory; the code here computes the same with PyTorch
alone. The tokenizer contains no code and never needs `trust_remote_code`. Text is generated from a
recurrent state of constant size. Pad batches on the left."""
_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)
_UNUSUAL = re.compile(r"[^\w./ -]", re.ASCII)
_STUDENT = "train_student.student"
_UNNAMED = "a model that is not on the Hub"
# Whatever else a recipe names is a matter of one machine or of speed.
_NOT_SHOWN = ("device", "reader_threads", "report_to", "compile", "parallel")


def model_card(
    model: Student,
    mixture: CacheMixture,
    config: TrainStudentConfig | None,
    metrics: Mapping[str, float],
) -> str:
    """The card, as Markdown."""
    spec = mixture.reference.spec
    sections = [
        _front_matter(spec.teacher.source, spec.teacher.revision)
        + f"# An xLSTM student of {_teacher(spec)}",
        _description(model, spec),
        usage(model.config.model_type),
    ]
    shown = [label for label in VALIDATION if label.card is not None and label.key in metrics]
    if shown:
        lines = [f"| {label.card} | {metrics[label.key]:.4f} |" for label in shown]
        where = "caches' validation splits" if mixture.is_mixed else "cache's validation split"
        head = f"| on the {where} | |\n|---|---|\n"
        sections.append("## Results\n\n" + head + "\n".join(lines))
    sections.append("## Training data\n\n" + _sources(mixture))
    if config is not None:
        sections.append(f"## Recipe\n\n```toml\n{_recipe(config)}\n```")
    holds_teacher = settings_class(model.config.model_type).holds_teacher
    part = "weights" if holds_teacher else "embedding and head"
    sections.append(
        f"## License\n\nThe license of the teacher, {_teacher(spec)}, applies to its {part}, which "
        "are part of this model."
    )
    return "\n\n".join(sections) + "\n"


def usage(kind: str) -> str:
    """The card's section on how a student of ``kind`` is loaded."""
    return "## Usage\n\n" + _LOAD.replace("{kind}", kind)


def plain_name(name: str) -> str:
    """A name from a file, which must not become more than a name in the card of who publishes."""
    return name if _NAME.fullmatch(name) else f"`{_UNUSUAL.sub('?', name)[:200]}`"


def untrained_card(model: Student, config: TrainStudentConfig) -> str:
    """The card of a student that was made from its teacher and not trained, as Markdown."""
    origin = model.config.teacher
    assert origin is not None, "it says where it is from"
    source, revision = origin["source"], origin["revision"]
    name = plain_name(source) if revision else _UNNAMED
    new = student_kind(model.config.model_type).mixer_parameters(model)
    num_new = sum(p.numel() for key, p in model.named_parameters() if key in new)
    sections = [
        _front_matter(source, revision) + f"# An untrained xLSTM student of {name}",
        f"All weights of the teacher{_at(revision)}, and {num_new:,} new ones that are not trained "
        f"yet: a distillation begins here. The teacher's weights have the SHA-256 "
        f"`{_UNUSUAL.sub('?', origin['weights_sha256'])}`.",
        usage(model.config.model_type),
        f"## Recipe\n\n```toml\n{_student_table(config)}\n```",
        f"## License\n\nThe license of the teacher, {name}, applies to its weights, which are part "
        "of this model.",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(source: str, revision: str) -> str:
    lines = ["library_name: transformers", "pipeline_tag: text-generation"]
    lines.append("tags: [xlstm, distillation]")
    if revision:
        lines.append(f"base_model: {json.dumps(source)}")
    return "\n".join(["---", *lines, "---", "", ""])


def _description(model: Student, spec: CacheSpec) -> str:
    num_steps = model.config.num_steps  # an extended run has more than its recipe says
    steps = "" if num_steps is None else f", for {num_steps:,} optimizer steps"
    what = student_kind(model.config.model_type).description(model)
    return f"{what}, on rows of {spec.sequence_length} tokens{steps}."


def _sources(mixture: CacheMixture) -> str:
    spec = mixture.reference.spec
    lines = [
        f"teacher: {_teacher(spec)}{_at(spec.teacher.revision)}, weights SHA-256 "
        f"`{_UNUSUAL.sub('?', spec.teacher.weights_sha256)}`",
    ]
    weights = mixture.weights or (None,) * len(mixture.caches)
    for cache, weight in zip(mixture.caches, weights, strict=True):
        targets = cache.spec.targets.kind
        often = "" if weight is None else f", weight {weight:g}"
        lines += [
            *corpus_lines(cache.spec),
            f"cache: `{cache.cache_id}`, targets {targets}{often}",
        ]
    if mixture.is_mixed and mixture.weights is None:
        lines.append("rows are drawn from each cache in proportion to its number of rows")
    return "\n".join(f"- {line}" for line in lines)


def corpus_lines(spec: CacheSpec) -> list[str]:
    """The corpus, or each of several with its share."""
    if spec.corpora is None:
        corpus = spec.sole_corpus
        return [f"corpus: {plain_name(corpus.source)}{_at(corpus.revision)}"]
    asked = math.fsum(share.weight for share in spec.corpora)
    return [
        f"corpus {share.name}: {plain_name(share.corpus.source)}{_at(share.corpus.revision)}, "
        f"{share.weight / asked:.1%} of the tokens asked for"
        for share in spec.corpora
    ]


def _teacher(spec: CacheSpec) -> str:
    """Its name on the Hub; a cache does not tell what directory it was read from."""
    source = spec.teacher.source
    return plain_name(source) if spec.teacher.revision else _UNNAMED


def _at(revision: str) -> str:
    return f" at {plain_name(revision)}" if revision else ""


def _recipe(config: TrainStudentConfig) -> str:
    """``[train_student]`` and the student's table, what is a matter of speed left out."""
    settings = {key: value for key, value in recipe_table(config).items() if key not in _NOT_SHOWN}
    del settings["student"]
    return f"{_toml_table('train_student', settings)}\n\n{_student_table(config)}"


def _student_table(config: TrainStudentConfig) -> str:
    student = recipe_table(config)["student"]
    shown = {key: value for key, value in student.items() if key not in config.student.speed_keys}
    return _toml_table(_STUDENT, shown)


def _toml_table(name: str, settings: Mapping[str, Any]) -> str:
    """A table in TOML, which writes these values as JSON does."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    return "\n".join([f"[{name}]", *lines])
