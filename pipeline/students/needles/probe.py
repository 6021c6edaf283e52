"""A needle in a haystack: does a model find a sentence again, by where it lies and how long ago?

In: a student, maybe its teacher, prompt lengths. Out: figures by length and depth. An answer is
right if greedy generation names the number. A model that is not good enough for that still says
something by which of several numbers it holds likeliest, of which only one was there before.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.students.needles.models import Reader, StudentReader, TeacherReader, load_teacher
from pipeline.students.needles.prompts import NUM_ANSWERS, NeedlePrompt, make_prompt
from pipeline.students.student_files import load_student_model, load_student_tokenizer

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
_MORE_TOKENS = 2  # than the answer has, for a model that begins with something else


@dataclass(frozen=True, kw_only=True)
class NeedleOptions:
    """What is asked."""

    lengths: Sequence[int]
    """Tokens of a prompt, its question included."""
    num_trials: int
    """Prompts of each length and depth."""
    device: str
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""


class Answered(NamedTuple):
    """How a prompt was answered.

    ``recall``: did greedy generation name the number, 0 or 1. ``choice``: was it the likeliest of
    ``NUM_ANSWERS``, 0 or 1; ``rank`` from 1 on is its place among them, ties counted against it.
    ``logprob``: its log-probability, in nats.
    """

    recall: float
    choice: float
    rank: float
    logprob: float


def look_for_needles(
    run: Path, teacher: Path | None, options: NeedleOptions, report: Callable[[int, int], None]
) -> dict[str, Any]:
    """Figures of the student of ``run`` and of the model in ``teacher``, as ``probe`` gives them.

    Raises ValueError where there is no student, or another teacher than the student's.
    """
    from stages.compute.device import choose_device

    device = choose_device(options.device)
    student: Any = load_student_model(run)
    tokenizer = load_student_tokenizer(run, student.config.head_rows)
    readers: dict[str, Reader] = {}
    if teacher is not None:
        model = load_teacher(teacher, student.config.teacher)
        readers["teacher"] = TeacherReader(model, device, student.config.vocab_size)
    readers["student"] = StudentReader(student, device)
    return probe(readers, tokenizer, options, report)


def probe(
    readers: Mapping[str, Reader],
    tokenizer: Any,
    options: NeedleOptions,
    report: Callable[[int, int], None],
) -> dict[str, Any]:
    """Means over trials for each reader: a list by length of lists by depth, of each measure.

    ``report`` is told tokens read and tokens in all. Raises ValueError where a length is too short.
    """
    for trial in range(options.num_trials):  # or a refusal, before what takes long
        make_prompt(tokenizer, min(options.lengths), 0.0, trial)
    total = len(readers) * options.num_trials * len(DEPTHS) * sum(options.lengths)
    num_read = 0
    found: dict[str, Any] = {
        "lengths": list(options.lengths),
        "depths": list(DEPTHS),
        "trials": options.num_trials,
        "answers": NUM_ANSWERS,
    }
    for who in readers:
        found[who] = {measure: [] for measure in Answered._fields}
    for length in options.lengths:
        by_depth: dict[str, list[Answered]] = {who: [] for who in readers}
        for depth in DEPTHS:
            answered: dict[str, list[Answered]] = {who: [] for who in readers}
            for trial in range(options.num_trials):
                prompt = make_prompt(tokenizer, length, depth, trial)
                for who, reader in readers.items():
                    answered[who].append(answer(reader, tokenizer, prompt))
                    num_read += length
                    report(num_read, total)
            for who, several in answered.items():
                means = map(statistics.fmean, zip(*several, strict=True))
                by_depth[who].append(Answered(*means))
        for who, cells in by_depth.items():
            for measure in Answered._fields:
                found[who][measure].append([getattr(cell, measure) for cell in cells])
    return found


def answer(reader: Reader, tokenizer: Any, prompt: NeedlePrompt) -> Answered:
    """How ``reader`` answers. Raises ValueError if its logits are not finite."""
    logits_1V, context = reader.read(None, prompt.input_ids, 1)
    if not bool(torch.isfinite(logits_1V).all()):
        raise ValueError(
            f"logits after {len(prompt.input_ids)} tokens are NaN or infinite: the model's weights "
            "are finite but too large to compute with. Use another model or an older checkpoint."
        )
    logprobs = [_logprob(reader, logits_1V, context, ids) for ids in prompt.answers]
    rank = 1 + sum(other >= logprobs[0] for other in logprobs[1:])
    most = max(map(len, prompt.answers)) + _MORE_TOKENS
    text = tokenizer.decode(_generate(reader, logits_1V, context, most))
    return Answered(
        recall=float(prompt.number in text),
        choice=float(rank == 1),
        rank=float(rank),
        logprob=logprobs[0],
    )


def _logprob(reader: Reader, logits_1V: Tensor, context: Any, ids: Sequence[int]) -> float:
    """Of ``ids`` after the context, whose last logits are given."""
    logits_PV = logits_1V
    if len(ids) > 1:
        following, _ = reader.read(context, ids[:-1], len(ids) - 1)
        logits_PV = torch.cat([logits_1V, following])
    logprobs_PV = logits_PV.double().log_softmax(-1)
    chosen = torch.tensor(ids, device=logprobs_PV.device)[:, None]
    return float(logprobs_PV.gather(1, chosen).sum())


def _generate(reader: Reader, logits_1V: Tensor, context: Any, num_tokens: int) -> list[int]:
    """The likeliest token, and the likeliest after it."""
    ids = [int(logits_1V.argmax())]
    while len(ids) < num_tokens:
        logits_1V, context = reader.read(context, ids[-1:], 1)
        ids.append(int(logits_1V.argmax()))
    return ids
