"""Prompts and single tokens after them: a hybrid student's state beside its teacher's cache.

In: a teacher, the student's settings and context lengths. Out: figures by context. A prompt goes
through a model at once; then single tokens follow, each from what the last one left.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.alternating import median_seconds
from benchmarks.hybrid.models import Place, convert
from benchmarks.progress import Done
from stages.train_student.modeling.hybrid_xlstm.settings import HybridXLSTMSettings

TOKENS_PER_REPEAT = 16
_TOKENS_AS_LONG = 16  # of a prompt, as one that is generated
WHO = ("student", "teacher")


@dataclass
class _Generation:
    """A model and what it keeps of the tokens so far: ``state``, or Hugging Face's cache."""

    model: Any
    keeps: str
    prompt_1T: Tensor
    token_11: Tensor | None = None
    kept: Any = None

    def read(self) -> None:
        self._take(self.model(self.prompt_1T, use_cache=True, logits_to_keep=1))

    def step(self) -> None:
        """The likeliest next token."""
        self._take(self.model(self.token_11, use_cache=True, **{self.keeps: self.kept}))

    def _take(self, output: Any) -> None:
        self.token_11, self.kept = output.logits[:, -1:].argmax(-1), output[self.keeps]


def generation(
    teacher: Any,
    settings: HybridXLSTMSettings,
    place: Place,
    contexts: Sequence[int],
    repeats: int,
    done: Done,
) -> dict[str, Any]:
    """Figures; the work that ``done`` is told of is that of so many tokens of a prompt.

    ``teacher`` is moved to ``place``.
    """
    models = {
        "student": (place.of_generation(convert(teacher, settings)), "state"),
        "teacher": (place.of_generation(teacher), "past_key_values"),
    }
    prompt_1T = torch.randint(teacher.config.vocab_size, (1, max(contexts)), device=place.device)
    runs = {
        f"{who} {context}": _Generation(*models[who], prompt_1T[:, :context])
        for context in contexts
        for who in WHO
    }
    with torch.inference_mode():
        reading = median_seconds(
            {name: run.read for name, run in runs.items()},
            repeats,
            lambda name: done(f"prompt, {name}", int(name.split()[1])),
            place.device,
        )
        num_bytes = {name: _held_bytes(run.kept) for name, run in runs.items()}
        stepping = median_seconds(
            {name: run.step for name, run in runs.items()},
            TOKENS_PER_REPEAT * repeats,
            lambda name: done(f"a token, {name}", _TOKENS_AS_LONG),
            place.device,
        )
    first, last = min(contexts), max(contexts)
    return {
        "prefill_tokens_per_s": _by_context(
            {name: round(int(name.split()[1]) / seconds) for name, seconds in reading.items()}
        ),
        "decode_ms_per_token": _by_context(
            {name: round(1e3 * seconds, 3) for name, seconds in stepping.items()}
        ),
        "state_bytes": _by_context(num_bytes),
        f"prefill_ratio_{last}": _ratio(reading, f"teacher {last}", f"student {last}"),
        f"decode_ratio_{last}": _ratio(stepping, f"teacher {last}", f"student {last}"),
        "decode_growth": _ratio(stepping, f"student {last}", f"student {first}"),
        "teacher_decode_growth": _ratio(stepping, f"teacher {last}", f"teacher {first}"),
    }


def _by_context(figures: Mapping[str, float]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {who: {} for who in WHO}
    for name, figure in figures.items():
        who, context = name.split()
        found[who][context] = figure
    return found


def _ratio(seconds: dict[str, float], above: str, below: str) -> float:
    return round(seconds[above] / seconds[below], 3)


def _held_bytes(kept: Any) -> int:
    """What it keeps in memory, which would be more than itself were a part of it a view."""
    storages = {part.untyped_storage() for part in _tensors(kept)}
    return sum(storage.nbytes() for storage in storages)


def _tensors(kept: Any) -> Iterator[Tensor]:
    if isinstance(kept, Tensor):
        yield kept
    elif isinstance(kept, tuple):
        for part in kept:
            yield from _tensors(part)
    elif kept is not None:  # Hugging Face's cache
        for layer in kept.layers:
            yield from (layer.keys, layer.values)
