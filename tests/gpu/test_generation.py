"""A student that generates on a GPU: by its state, and as the command does."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.students.generation import Sampling, stream_text
from tests.support.noisy_students import make_ids, make_noisy_student
from tests.support.students import publish_student

pytestmark = pytest.mark.gpu


@torch.inference_mode()
def test_token_by_token_gives_the_logits_of_the_whole(device: torch.device) -> None:
    student: Any = make_noisy_student(torch.float32).to(device)
    ids_BT = make_ids(2, 24).to(device)
    whole = student(ids_BT).logits
    output = student(ids_BT[:, :15], use_cache=True)
    found = [output.logits]
    for position in range(15, 24):
        output = student(ids_BT[:, position : position + 1], state=output.state, use_cache=True)
        found.append(output.logits)
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-3, atol=1e-3)
    on_cpu = student.cpu()(ids_BT.cpu()).logits
    torch.testing.assert_close(whole.cpu(), on_cpu, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_command_writes_the_same_text_twice(
    tiny_cache: Path, tmp_path: Path, temperature: float
) -> None:
    """On the GPU, if the process is shown one."""
    run = publish_student(tiny_cache, tmp_path / "run")
    sampling = Sampling(max_new_tokens=20, temperature=temperature, top_k=20, seed=1)
    texts = []
    for _ in range(2):
        pieces: list[str] = []
        stream_text(run, "the teacher", sampling, pieces.append)
        texts.append("".join(pieces))
    assert texts[0] == texts[1]
    assert len(texts[0].strip()) > len("the teacher")
