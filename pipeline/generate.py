"""Let a student go on from a prompt.

In: the directory that a run wrote, or a Hugging Face model directory, and a prompt. Out: text,
piece by piece. Called by ``pipeline generate``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen."""

    max_new_tokens: int
    temperature: float
    """0 takes the likeliest token."""
    top_k: int
    seed: int


def stream_text(run: Path, prompt: str, sampling: Sampling, write: Callable[[str], None]) -> None:
    """Hand ``prompt`` and what the student of ``run`` makes of it to ``write``, as it is made.

    Raises ValueError if ``run`` holds no model, or the prompt no token or bytes that are no text.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:  # such bytes reach a program as surrogates
        raise ValueError(
            f"--prompt: not UTF-8 text: {error.object[error.start : error.end]!a} at "
            f"character {error.start}. Type it again, in UTF-8."
        ) from error
    model_path = model_directory(run)
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer, set_seed

    import stages.train_student.student.model  # noqa: F401  (registers the student with transformers)

    class Stream(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            write(text + "\n" if stream_end else text)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer: Any = AutoTokenizer.from_pretrained(model_path)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(model_path)
    except SafetensorError as error:
        raise ValueError(
            f"{model_path}: the weights are damaged ({error}). Copy the model again, or move it "
            "away and run the same `pipeline train-student` command with --resume."
        ) from error
    model.to(device).eval()
    inputs = tokenizer(prompt, return_tensors="pt").to(device)
    if inputs["input_ids"].numel() == 0:
        raise ValueError("the prompt is empty: a student goes on from at least one token")
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
        streamer=Stream(tokenizer, skip_special_tokens=True),
        **choice,
    )


def model_directory(run: Path) -> Path:
    """The model directory that ``run`` is or holds. Raises ValueError if there is none."""
    for candidate in (run / "model", run):
        if (candidate / "config.json").is_file():
            return candidate
    if (run / "run.json").is_file():
        raise ValueError(
            f"{run}: its training has not finished, so there is no model yet. Finish it with "
            "`pipeline train-student … --resume`."
        )
    raise ValueError(f"{run}: neither a run of `pipeline train-student` nor a model directory")
