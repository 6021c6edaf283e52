"""Stage one on a GPU: the same bytes every time, and what a processor would have stored."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.recipes.recipe import load_recipe
from pipeline.runtime.failures import explain
from stages.cache_teacher.setup.batch_size import rows_that_fit
from stages.cache_teacher.teacher.forward import PendingRows, TeacherStep
from stages.compute.compiling import has_compiler
from stages.compute.out_of_memory import is_out_of_memory
from tests.support.devices import no_host_waits
from tests.support.stage_one_runs import Bench, rows_by_unit, shard_bytes
from tests.support.tiny import save_tiny_teacher

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # PyTorch's own
]
KINDS: dict[str, dict[str, Any]] = {
    "top_k": {"targets": "top_k"},
    "moments": {"targets": "top_k", "tail_moment_dim": 4},
    "sampled": {"targets": "sampled"},
    "top_k+sampled": {"targets": "top_k+sampled"},
    "hidden": {"targets": "hidden"},
    "hidden, nearest": {"targets": "hidden", "hidden_quantization": "nearest"},
    "top_k+hidden": {"targets": "top_k+hidden"},
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    root = tmp_path_factory.mktemp("gpu")
    return Bench(save_tiny_teacher(root / "teacher"), root)


def assert_same_twice(bench: Bench, name: str, **settings: Any) -> None:
    made = []
    for out in (f"{name}-first", f"{name}-second"):
        bench.run(out, **settings)
        made.append(shard_bytes(bench.root / out))
    assert made[0].keys() == made[1].keys()
    differing = [shard for shard, data in made[0].items() if made[1][shard] != data]
    assert made[0]
    assert differing == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_recipe_gives_the_same_bytes(
    device: torch.device, bench: Bench, kind: str
) -> None:
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    assert_same_twice(bench, kind, device=str(device), teacher_dtype=dtype, **KINDS[kind])


def test_compiled_targets_are_the_same_bytes_every_time(device: torch.device, bench: Bench) -> None:
    if device.type != "cuda" or not has_compiler(device):
        pytest.skip("compiled targets of a processor are tested in the default suite")
    assert_same_twice(bench, "compiled", device="cuda", teacher_dtype="bfloat16", compile="on")


@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_pass_and_its_targets_are_queued_without_a_wait(
    device: torch.device, bench: Bench, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    launch, num_watched = TeacherStep.launch, 0

    def watched(step: TeacherStep, *arguments: Any) -> PendingRows:
        nonlocal num_watched
        num_watched += 1
        if num_watched == 1:  # makes what is made once
            return launch(step, *arguments)
        if device.type == "cuda":
            with no_host_waits(device):
                return launch(step, *arguments)
        with monkeypatch.context() as patch:  # NumPy's arrays are not told from lists: targets only
            patch.setattr(type(step.maker), "make", without_waits(type(step.maker).make))
            return launch(step, *arguments)

    def without_waits(make: Callable[..., Any]) -> Callable[..., Any]:
        def watched_make(*arguments: Any) -> Any:
            with no_host_waits(device):
                return make(*arguments)

        return watched_make

    dtype = "bfloat16" if device.type == "cuda" else "float32"
    settings = {"device": str(device), "teacher_dtype": dtype, **KINDS[kind]}
    bench.run(f"{kind}-watched", num_tokens=1, **settings)  # what is fitted to a unit waits
    monkeypatch.setattr(TeacherStep, "launch", watched)
    bench.run(f"{kind}-watched", **settings)
    assert num_watched > 2


def test_rows_found_by_trial_fit_and_give_a_cache(device: torch.device, bench: Bench) -> None:
    manifest = bench.run("found", device=str(device), rows_per_forward=None)
    assert manifest.complete
    assert len(rows_by_unit(bench.open("found"))) > 10


def test_a_float32_teacher_stores_what_it_does_on_a_processor(
    device: torch.device, bench: Bench
) -> None:
    bench.run("gpu", device=str(device))
    bench.run("cpu", device="cpu")
    pairs = zip(*(rows_by_unit(bench.open(out)) for out in ("gpu", "cpu")), strict=True)
    for (unit, found), (same_unit, expected) in pairs:
        assert unit == same_unit
        assert np.array_equal(found.token_ids, expected.token_ids)
        assert found.kept_ids is not None
        assert expected.kept_ids is not None
        scored = expected.scored()
        ours, theirs = (row.kept_ids.next_logprob[scored] for row in (found, expected))
        np.testing.assert_allclose(ours, theirs, atol=2e-2)  # it is stored in float16
        ours, theirs = (row.kept_ids.tail_log_mass[scored] for row in (found, expected))
        assert np.median(np.abs(ours - theirs)) < 2e-2


def test_out_of_memory_names_the_settings_and_keeps_what_is_finished(
    device: torch.device, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch, num_launched = TeacherStep.launch, 0

    def running_out(step: TeacherStep, *arguments: Any) -> PendingRows:
        nonlocal num_launched
        num_launched += 1
        if num_launched > 10:
            torch.empty(1 << 50, dtype=torch.uint8, device=device)
        return launch(step, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TeacherStep, "launch", running_out)
        with pytest.raises(RuntimeError) as failure:
            bench.run("interrupted", device=str(device))
    assert is_out_of_memory(failure.value)
    said = explain(failure.value, "cache-teacher", load_recipe("small", []))
    assert "Lower cache_teacher.rows_per_forward (now as many as fit)" in said
    finished = shard_bytes(bench.root / "interrupted")
    assert finished
    bench.run("interrupted", device=str(device))
    bench.run("uninterrupted", device=str(device))
    expected = shard_bytes(bench.root / "uninterrupted")
    assert shard_bytes(bench.root / "interrupted") == expected
    assert finished.items() < expected.items()


def test_batches_that_do_not_fit_are_found_by_trial(device: torch.device) -> None:
    held: list[torch.Tensor] = []

    def try_rows(num_rows: int) -> None:
        held.append(torch.empty(num_rows << 47, dtype=torch.uint8, device=device))

    assert rows_that_fit(try_rows, 64, held.clear) == 0
    smaller = rows_that_fit(lambda num_rows: try_rows(num_rows >> 3), 64, held.clear)
    assert smaller == 4  # of which none takes memory, and eight would
