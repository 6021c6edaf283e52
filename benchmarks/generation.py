"""Generating a token after contexts of several lengths, with the student's recurrent state.

In: a width and context lengths. Out: figures. A prompt goes through the
model at once; then single tokens follow, each from the state that the last one left.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.alternating import median_seconds
from benchmarks.progress import Done, quiet
from stages.train_student.modeling.distil_xlstm.build import build_student
from stages.train_student.modeling.distil_xlstm.modeling import DistilXLSTMForCausalLM
from stages.train_student.modeling.distil_xlstm.settings import DistilXLSTMSettings
from stages.train_student.modeling.distil_xlstm.stack import StackState

_VOCAB_SIZE = 8192
_TOKENS_PER_REPEAT = 16  # one of each context in turn


@dataclass
class _Generation:
    model: DistilXLSTMForCausalLM
    token_B1: Tensor
    state: StackState

    def step(self) -> None:
        """The likeliest next token of each row."""
        output = self.model(self.token_B1, state=self.state, use_cache=True)
        self.token_B1, self.state = output.logits[:, -1:].argmax(-1), output.state


def generation(
    width: int, contexts: Sequence[int], repeats: int, done: Done = quiet
) -> dict[str, object]:
    """Milliseconds per token and per prompt, and what the state holds; ``done``: each prompt."""
    model = build_student(
        DistilXLSTMSettings(),
        hidden_size=width,
        vocab_size=_VOCAB_SIZE,
        head_rows=_VOCAB_SIZE,
        eos_token_id=None,
        embedding=None,
        head=None,
        seed=0,
    )
    model.eval()  # type: ignore[no-untyped-call]
    prompt_BT = torch.randint(_VOCAB_SIZE, (1, max(contexts)))
    after, prompt_ms, state_bytes = {}, {}, {}
    with torch.inference_mode():
        model(prompt_BT[:, :2], use_cache=True)  # the first call pays for what is made once
        for context in contexts:
            begin = time.perf_counter()
            output = model(prompt_BT[:, :context], use_cache=True, logits_to_keep=1)
            prompt_ms[str(context)] = round(1e3 * (time.perf_counter() - begin), 1)
            token_B1 = output.logits.argmax(-1)
            after[str(context)] = _Generation(model, token_B1, output.state)
            state_bytes[str(context)] = _held_bytes(output.state)
            done(f"prompt of {context}")
        steps = {name: one.step for name, one in after.items()}
        median = median_seconds(steps, _TOKENS_PER_REPEAT * repeats)
    first, last = (str(end(contexts)) for end in (min, max))
    return {
        f"generation_time_ratio_{last}_to_{first}": round(median[last] / median[first], 3),
        "generation_ms_per_token": {
            name: round(1e3 * seconds, 3) for name, seconds in median.items()
        },
        "generation_prompt_ms": prompt_ms,
        "generation_state_bytes": state_bytes,
    }


def _held_bytes(state: StackState) -> int:
    """What the state keeps in memory, which would be more than itself were a part of it a view."""
    parts = [part for layer in state for part in (layer.conv_BKD, *layer.cell)]
    return sum(part.untyped_storage().nbytes() for part in parts)
