"""Trains one model on recall and says what it has learned.

In: a task and a model. Out: accuracy on held-out rows, and how many steps it took. Rows of a step
are a function of seed and step alone, so all models of a seed see the same.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.recall.task import RecallTask, Rows

SOLVED = 0.98
"""Accuracy on the checked rows at which a training ends."""
_CHECKED_ROWS, _HELD_OUT_ROWS, _EVALUATION_BATCH = 128, 512, 128
_CHECKED, _HELD_OUT = 1, 2  # what a generator draws, besides 0: the rows of training


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Of all models alike: AdamW, warm-up, then a constant learning rate."""

    steps: int
    learning_rate: float = 3e-3
    batch: int = 32
    warmup_steps: int = 50
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    check_every: int = 50
    """Steps between two looks at the checked rows."""


def train(model: Any, task: RecallTask, settings: TrainingSettings, seed: int) -> dict[str, Any]:
    """Figures of a training, which ends early where accuracy reaches ``SOLVED``.

    ``solved_after`` is the number of steps then, or None; ``checks`` has the accuracy at each look.
    ``accuracy`` is that of rows that neither training nor the looks have seen.
    """
    begin = time.perf_counter()
    optimizer = _optimizer(model, settings)
    generator = _generator(seed, 0)
    checks: list[float] = []
    step = 0
    while step < settings.steps and not (checks and checks[-1] >= SOLVED):
        for group in optimizer.param_groups:
            warm = min(1.0, (step + 1) / settings.warmup_steps)
            group["lr"] = settings.learning_rate * warm
        loss = _loss(model, task.draw(settings.batch, generator))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        step += 1
        if step % settings.check_every == 0:
            checks.append(accuracy(model, task.draw(_CHECKED_ROWS, _generator(seed, _CHECKED))))
    is_solved = bool(checks) and checks[-1] >= SOLVED
    return {
        "accuracy": accuracy(model, task.draw(_HELD_OUT_ROWS, _generator(seed, _HELD_OUT))),
        "solved_after": step if is_solved else None,
        "checks": checks,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": round(time.perf_counter() - begin, 1),
    }


@torch.no_grad()
def accuracy(model: Any, rows: Rows) -> float:
    """The share of queries whose most likely id is their value."""
    model.eval()
    num_right = torch.zeros((), dtype=torch.long)
    for ids, labels in zip(*(torch.split(part, _EVALUATION_BATCH) for part in rows), strict=True):
        num_right += (_scored_logits(model, ids, labels)[0].argmax(-1) == labels[labels >= 0]).sum()
    model.train()
    return num_right.item() / int((rows.labels >= 0).sum())


def _loss(model: Any, rows: Rows) -> Tensor:
    return nn.functional.cross_entropy(*_scored_logits(model, *rows))


def _scored_logits(model: Any, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the queries alone, and their labels."""
    is_scored = labels >= 0
    return model(input_ids=ids).logits[is_scored], labels[is_scored]


def _optimizer(model: Any, settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW; weight decay is for matrices."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95))


def _generator(seed: int, purpose: int) -> torch.Generator:
    return torch.Generator().manual_seed(3 * seed + purpose)
