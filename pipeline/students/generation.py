"""Generate text from a prompt with a student.

In: the directory that a run wrote, or a Hugging Face model directory, and a prompt. Out: text,
piece by piece.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.students.student_files import load_student_model, load_student_tokenizer


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen."""

    max_new_tokens: int
    temperature: float
    """0 takes the likeliest token."""
    top_k: int
    seed: int


def require_text(prompt: str) -> None:
    """Raise ValueError where ``prompt`` was typed in bytes that are no text."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:  # such bytes reach a program as surrogates
        raise ValueError(
            f"--prompt: not UTF-8 text: {error.object[error.start : error.end]!a} at "
            f"character {error.start}. Pass it again, in UTF-8."
        ) from error


def stream_text(run: Path, prompt: str, sampling: Sampling, write: Callable[[str], None]) -> None:
    """Hand ``prompt`` and what the student of ``run`` makes of it to ``write``, as it is made.

    Raises ValueError if ``run`` holds no model, or the prompt no token.
    """
    model: Any = load_student_model(run)
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList, TextStreamer, set_seed

    class Stream(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            write(text + "\n" if stream_end else text)

    class RequireNumbers(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            if (scores.isnan() | scores.isposinf()).any():
                raise ValueError(
                    f"{run}: the student's logits after {input_ids.shape[1]} tokens are NaN or "
                    "infinite: its weights are finite but too large to compute with. Use another "
                    "model or an older checkpoint."
                )
            return scores

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    tokenizer = load_student_tokenizer(run, model.config.head_rows)
    inputs = tokenizer(prompt, return_tensors="pt").to(device)
    if inputs["input_ids"].numel() == 0:
        raise ValueError("the prompt is empty: generation needs at least one token")
    set_seed(sampling.seed)
    choice: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        choice = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
        }
    model.generate(
        input_ids=inputs["input_ids"],
        max_new_tokens=sampling.max_new_tokens,
        logits_processor=LogitsProcessorList([RequireNumbers()]),
        streamer=Stream(tokenizer, skip_special_tokens=True),
        **choice,
    )
