"""The objective as a whole: a step asks the device for nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import cache_format
from stages.train_student.batches.batch import read_batch
from stages.train_student.objective.objective import Objective, Share, scored
from stages.train_student.objective.schedule import LossWeights
from stages.train_student.training.new_student import load_student
from tests.stages.train_student.test_run import tiny_config

_ASKS = ("nonzero", "_local_scalar_dense", "masked_select", "unique", "item", "equal.default")
"""Operations whose result, or its size, the host would have to wait for."""


class NothingIsAsked(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails where an operation would make the host wait for a GPU."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func).removeprefix("aten.")
        indices = args[1] if name.startswith("index.") else ()
        is_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        assert not name.startswith(_ASKS), name
        assert not is_mask, f"{name} by a mask"
        return func(*args, **kwargs or {})


def test_the_mode_finds_what_waits() -> None:
    values = torch.arange(3.0)
    with NothingIsAsked():  # type: ignore[no-untyped-call]
        for ask in (
            lambda: values[values > 1],
            lambda: bool(values.sum() > 1),
            lambda: values.nonzero(),
            lambda: values[1].item(),
        ):
            with pytest.raises(AssertionError):
                ask()
        assert len(values.index_select(0, torch.tensor([0]))) == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("slstm_at", [(0,), ()])
def test_forward_and_backward_wait_for_nothing(
    tiny_cache: Path, precision: str, slstm_at: tuple[int, ...]
) -> None:
    cache = cache_format.open(tiny_cache)
    model = load_student(tiny_config(slstm_at=slstm_at), cache)
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    objective = Objective(
        head_VD=model.lm_head.weight[: cache.spec.teacher.vocab_size],
        spec=cache.spec,
        chunk=16,
        dtype=dtypes[precision],
    )
    batch = read_batch(cache, "train", range(4), with_sketch=True)
    assert batch.is_document_start[:, 1:].any()
    weights, share = LossWeights(0.5, 0.1, 1.3), Share(batch.num_scored, batch.num_rows)
    with NothingIsAsked():  # type: ignore[no-untyped-call]
        loss, _ = objective.terms(model, batch, weights, share)
        loss.backward()  # type: ignore[no-untyped-call]


def test_scored_positions(tiny_cache: Path) -> None:
    batch = read_batch(cache_format.open(tiny_cache), "train", [0, 3], with_sketch=True)
    is_scored = batch.labels >= 0
    assert torch.equal(scored(batch.labels, batch), batch.labels[is_scored])
    assert torch.equal(scored(batch.gaps, batch), batch.gaps[is_scored])
