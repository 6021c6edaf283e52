"""Stage two on a GPU: precision, waits, checkpoints that change devices, memory that runs out."""

from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch

import cache_format
from benchmarks.trainings import Training
from pipeline.recipes.recipe import load_recipe
from pipeline.runtime.failures import explain
from stages.compute.compiling import has_compiler
from stages.compute.out_of_memory import is_out_of_memory
from stages.train_student.checkpoints import checkpoint
from stages.train_student.data.loader import Loader
from stages.train_student.losses.loss_term import LossNormalizer
from stages.train_student.losses.objective import Objective
from stages.train_student.losses.schedules import LearningRates
from stages.train_student.losses.terms import LossWeights
from stages.train_student.tracking.run_progress import TrainProgress
from stages.train_student.trainer.stopping import StoppedError
from tests.support.devices import no_host_waits
from tests.support.student_caches import TARGETS, TEMPERATURES, write_cache
from tests.support.train_configs import tiny_train_config
from tests.support.train_runs import metrics, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # PyTorch's own
]
CPU = torch.device("cpu")


def losses(out: Path) -> list[float]:
    return [row["train/loss"] for row in metrics(out) if "train/loss" in row]


def on(device: torch.device, **changes: Any) -> Any:
    """Settings without dropout, whose generator each kind of device has its own of."""
    return tiny_train_config(device=str(device), dropout=0.0, **changes)


@pytest.fixture(scope="module")
def on_cpu(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the processor, in float32."""
    out = tmp_path_factory.mktemp("on-cpu") / "run"
    run(on(CPU), tiny_cache, out)
    return out


@pytest.mark.parametrize(
    ("precision", "bound"), [("fp32", 1e-3), ("bf16", 3e-2), ("fp16", 3e-2), ("auto", 3e-2)]
)
def test_a_run_has_the_losses_of_a_processor(
    device: torch.device,
    on_cpu: Path,
    tiny_cache: Path,
    tmp_path: Path,
    precision: str,
    bound: float,
) -> None:
    run(on(device, precision=precision), tiny_cache, tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(losses(on_cpu), rel=bound)


def test_a_compiled_run_has_the_losses_of_a_processor(
    device: torch.device, on_cpu: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    if device.type != "cuda" or not has_compiler(device):
        pytest.skip("the compiled loss of a processor is tested in the default suite")
    run(on(device, compile="on"), tiny_cache, tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(losses(on_cpu), rel=1e-3)


def test_fp16_skips_a_step_that_overflows_and_goes_on(
    device: torch.device, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_format.open(tiny_cache)
    training = Training("cache", cache, on(device, precision="fp16", max_steps=None), device)
    weights = [p for p in training.model.parameters() if p.requires_grad]
    scaler = training._updater.scaler
    before, scale = [weight.detach().clone() for weight in weights], scaler.get_scale()
    with monkeypatch.context() as patch:
        terms = Objective.micro_batch_loss

        def overflowing(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
            loss, values = terms(*arguments)
            return loss * 1e36, values  # times the scale it is infinite, and so is its gradient

        patch.setattr(Objective, "micro_batch_loss", overflowing)
        training.run(1)
    assert all(map(torch.equal, weights, before))
    assert scaler.get_scale() == scale / 2
    training.run(2)
    assert not any(map(torch.equal, weights[:2], before[:2]))
    assert all(bool(weight.isfinite().all()) for weight in weights)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("kind", TARGETS)
def test_the_gradient_of_a_step_waits_for_nothing(
    device: torch.device,
    tmp_path: Path,
    kind: str,
    precision: str,
) -> None:
    cache = write_cache(tmp_path / "cache", TARGETS[kind])
    start, end = TEMPERATURES.get(kind, (2.0, 1.0))
    config = on(
        device,
        precision=precision,
        max_steps=None,
        temperature_start=start,
        temperature_end=end,
        gradient_accumulation_steps=1,
    )
    require_no_waits(Training("cache", cache, config, device), start)


def test_sampled_columns_are_chosen_without_a_wait(device: torch.device, tiny_cache: Path) -> None:
    cache = cache_format.open(tiny_cache)
    # Chunks so short that what their positions name is not all there is.
    config = on(device, precision="fp16", max_steps=None, loss_chunk=4, sampled_softmax_size=32)
    training = Training("cache", cache, config, device)
    if device.type != "cuda":
        training.run(1)
        pytest.skip("a processor drops what is named twice, which a GPU would wait for")
    require_no_waits(training, 1.3)


@pytest.mark.parametrize("compile", ["off", "auto"])
def test_a_step_on_packed_documents_waits_for_nothing(
    device: torch.device, tiny_cache: Path, compile: str
) -> None:
    if device.type != "cuda" and compile == "auto":
        pytest.skip("what is compiled dispatches nothing that could be watched")
    if compile == "auto" and not has_compiler(device):
        pytest.skip("there is no compiler")
    cache = cache_format.open(tiny_cache)
    config = on(device, precision="fp16", max_steps=None, compile=compile)
    require_no_waits(Training("cache", cache, config, device), 1.3)


def require_no_waits(training: Training, temperature: float) -> None:
    """Of the third step, once everything is compiled and allocated."""
    training.run(2)
    with Loader(
        training.cache, training.order, training.device, num_threads=1, with_sketch=True
    ) as loader:
        (step,) = loader.steps(2, 3)
        normalizer = LossNormalizer(sum(batch.num_scored for batch in step), 4)
        weights = LossWeights(0.5, 0.1, temperature)
        if training.device.type == "cuda":
            with no_host_waits(training.device):
                sums = training._updater.accumulate(step, weights, normalizer, repeat(0, len(step)))
            # The one wait of a step is for its figures.
            figures = training._updater.update(sums, LearningRates(1e-3, 1e-3))
            assert figures["loss"] > 0
        else:  # a scaler of processors asks where one of GPUs does not
            for batch in step:
                with no_host_waits(training.device):
                    loss, _ = training.objective.micro_batch_loss(
                        training.model, batch, weights, normalizer
                    )
                    loss.backward()  # type: ignore[no-untyped-call]


def test_a_checkpoint_is_resumed_on_another_device_and_back(
    device: torch.device, on_cpu: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    out, last = tmp_path / "run", 0

    def report(progress: TrainProgress) -> None:
        nonlocal last
        last = progress.step

    for number, place in enumerate((device, CPU, device)):
        stop_after = (2, 5, 99)[number]
        try:
            run(
                on(place),
                tiny_cache,
                out,
                resume=number > 0,
                report=report,
                stop=lambda at=stop_after: last == at,  # type: ignore[misc]
            )
        except StoppedError:
            assert number < 2
    assert last == 9
    assert losses(out) == pytest.approx(losses(on_cpu), rel=1e-3)


def test_out_of_memory_names_the_settings_and_loses_nothing(
    device: torch.device,
    on_cpu: Path,
    tiny_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num_calls, terms = 0, Objective.micro_batch_loss

    def running_out(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal num_calls
        num_calls += 1
        if num_calls > 2 * 5:  # in the sixth step, two after a checkpoint
            torch.empty(1 << 50, dtype=torch.uint8, device=device)
        return terms(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "micro_batch_loss", running_out)
        with pytest.raises(RuntimeError) as failure:
            run(on(device, eval_steps=100), tiny_cache, tmp_path / "run")
    assert is_out_of_memory(failure.value)
    said = explain(failure.value, "train-student", load_recipe("small", []))
    assert "Lower train_student.batch_size (now 8)" in said
    newest = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert newest.name == "step-0000003"
    del failure
    run(on(device, eval_steps=100), tiny_cache, tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == pytest.approx(losses(on_cpu), rel=1e-3)
