"""The mean square of single layers: value, gradient, where it is zero, and what it needs."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import cache_format
from cache_format.metadata.spec_parts.sketch import SketchSpec
from cache_format.reader import Cache
from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.batch import Batch, read_batch
from stages.train_student.data.requirements import require_targets
from stages.train_student.losses.loss_term import LossNormalizer, TeacherTargets, TermInputs
from stages.train_student.losses.objective import Objective, make_objective
from stages.train_student.losses.states.layers import LayerMSETerm, ProjectedLayers
from stages.train_student.losses.terms import LossWeights, cache_needs, loss_weights
from stages.train_student.new_student import load_student
from stages.train_student.students.registry import student_settings
from stages.train_student.tracking.run_progress import TrainProgress
from stages.train_student.trainer.stopping import StoppedError
from tests.support.context_rows import CONTEXT, write_context_cache
from tests.support.hybrid_runs import align_config, distill_config, hybrid_cache
from tests.support.sample_cache import pca_sketch, sample_spec
from tests.support.student_caches import TARGETS, write_cache
from tests.support.train_runs import metrics, run, weights

CPU = torch.device("cpu")
RADEMACHER = SketchSpec(kind="rademacher", dim=8, hidden_states="each:1,2")
SKETCHES = pytest.mark.parametrize(
    "sketch", [RADEMACHER, pca_sketch(hidden_states="each:1,2")], ids=lambda s: str(s.kind)
)
_ALONE: dict[str, Any] = {"alpha_start": 0.0, "alpha_end": 0.0, "layer_mse_weight": 1.0}
_NEW = {**_ALONE, "trained": "new", "learning_rate": 1e-2, "max_steps": 6}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds ``teacher`` and ``cache``, with layers 1, 2 and 3, each by itself, stored exactly."""
    path = tmp_path_factory.mktemp("layers")
    hybrid_cache(
        path,
        hidden_states="each:1,2,3",
        hidden_projection="rademacher",
        hidden_projection_dtype="float32",
    )
    return path


@pytest.fixture(scope="module")
def stored(root: Path) -> Cache:
    return cache_format.open(root / "cache")


def made_up(batch: Batch, num_layers: int = 2) -> tuple[Tensor, ...]:
    """States of a student's layers, the later ones larger."""
    generator = torch.Generator().manual_seed(0)
    shape = (*batch.input_ids.shape, 16)
    return tuple(
        torch.randn(shape, generator=generator) * 10**number for number in range(num_layers)
    )


def projected(batch: Batch, sketch: SketchSpec) -> ProjectedLayers:
    assert batch.sketch is not None
    assert batch.projection is not None
    scale = 1.0 if sketch.kind == "pca" else sketch.dim**-0.5
    return ProjectedLayers(batch.sketch, batch.projection, scale)


def term_of(batch: Batch, layers_BTD: tuple[Tensor, ...], teacher: ProjectedLayers) -> Any:
    """What the term makes of them, with the weight 0.3."""
    nothing = torch.zeros(0)
    inputs = TermInputs(batch, layers_BTD[-1], nothing, TeacherTargets(layers=teacher), layers_BTD)
    return LayerMSETerm()(inputs, 0.3, LossNormalizer(batch.num_scored, batch.num_rows))


def in_float64(batch: Batch, layers_BTD: tuple[Tensor, ...], teacher: ProjectedLayers) -> Tensor:
    """The formula, a position and a layer at a time."""
    ratios = []
    for row, position in (batch.labels >= 0).nonzero().tolist():
        matrix_BDd = teacher.projection_BDd.double()
        matrix_Dd = matrix_BDd[row if len(matrix_BDd) > 1 else 0] * teacher.scale
        for number, layer_BTD in enumerate(layers_BTD):
            of_teacher_d = teacher.sketch_BTLd[row, position, number].double()
            of_student_d = layer_BTD[row, position] @ matrix_Dd
            squares = (of_student_d - of_teacher_d).square().sum()
            ratios.append(squares / of_teacher_d.square().sum())
    return torch.stack(ratios).mean()


@SKETCHES
def test_value_and_gradient_are_those_of_the_formula_in_float64(
    tmp_path: Path, sketch: SketchSpec
) -> None:
    cache = write_cache(tmp_path / "cache", TARGETS["top_k"], sketch)
    batch = read_batch(cache, "train", range(3), with_sketch=True)
    teacher = projected(batch, sketch)
    layers_BTD = tuple(layer_BTD.requires_grad_() for layer_BTD in made_up(batch))
    found = term_of(batch, layers_BTD, teacher)
    gradients = torch.autograd.grad(found.weighted, layers_BTD)

    wide_BTD = tuple(layer_BTD.detach().double().requires_grad_() for layer_BTD in layers_BTD)
    expected = in_float64(batch, wide_BTD, teacher)
    expected_gradients = torch.autograd.grad(0.3 * expected, wide_BTD)
    assert found.values[0].item() == pytest.approx(expected.item(), rel=1e-5)
    assert found.weighted.item() == pytest.approx(0.3 * expected.item(), rel=1e-5)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        bound = 1e-5 * float(expected_gradient.abs().max())
        torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=bound)


@SKETCHES
def test_positions_that_are_not_scored_have_no_influence(
    tmp_path: Path, sketch: SketchSpec
) -> None:
    """Context, and the last position of a document."""
    spec = sample_spec(targets=TARGETS["top_k"], sketch=sketch)
    plain = write_cache(tmp_path / "plain", TARGETS["top_k"], sketch)
    cache = write_context_cache(tmp_path / "cache", spec)
    batch = read_batch(cache, "train", range(3), with_sketch=True)
    is_scored = batch.labels >= 0
    assert not is_scored[:, CONTEXT].any()
    assert (read_batch(plain, "train", range(3), with_sketch=True).labels < 0).any()
    teacher, layers_BTD = projected(batch, sketch), made_up(batch)
    other_BTD = tuple(
        torch.where(is_scored[..., None], layer_BTD, 1e3).requires_grad_()
        for layer_BTD in layers_BTD
    )
    noisy = replace(
        teacher, sketch_BTLd=torch.where(is_scored[..., None, None], teacher.sketch_BTLd, 7.0)
    )
    found = term_of(batch, other_BTD, noisy)
    assert torch.equal(found.values[0], term_of(batch, layers_BTD, teacher).values[0])
    for gradient in torch.autograd.grad(found.weighted, other_BTD):
        assert not gradient[~is_scored].any()
        assert gradient[is_scored].any()


def test_layers_and_positions_count_alike_whatever_their_norms(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", TARGETS["top_k"], RADEMACHER)
    batch = read_batch(cache, "train", range(3), with_sketch=True)
    teacher, layers_BTD = projected(batch, RADEMACHER), made_up(batch)
    sizes_BTL = torch.rand(*batch.input_ids.shape, 2, generator=torch.Generator().manual_seed(2))
    sizes_BTL = torch.exp2((sizes_BTL * 20).round())
    larger = replace(teacher, sketch_BTLd=teacher.sketch_BTLd * sizes_BTL[..., None])
    larger_BTD = tuple(
        layer_BTD * sizes_BTL[:, :, number, None] for number, layer_BTD in enumerate(layers_BTD)
    )
    expected = term_of(batch, layers_BTD, teacher).values[0]
    assert term_of(batch, larger_BTD, larger).values[0].item() == pytest.approx(expected.item())


def test_a_teacher_of_zeros_has_no_relative_error(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", TARGETS["top_k"], RADEMACHER)
    batch = read_batch(cache, "train", range(3), with_sketch=True)
    teacher = projected(batch, RADEMACHER)
    layers_BTD = tuple(layer_BTD.requires_grad_() for layer_BTD in made_up(batch))
    second = teacher.sketch_BTLd.clone()
    second[:, :, 0] = 0
    found = term_of(batch, layers_BTD, replace(teacher, sketch_BTLd=second))
    only = replace(teacher, sketch_BTLd=teacher.sketch_BTLd[:, :, 1:])
    expected = term_of(batch, layers_BTD[1:], only)
    assert found.values[0].item() == pytest.approx(expected.values[0].item() / 2)
    first, _ = torch.autograd.grad(found.weighted, layers_BTD)
    assert not first.any()


def test_random_signs_give_the_relative_error_to_what_the_docstring_says() -> None:
    """Along the teacher's state exactly; at a right angle to it, too high by d/(d − 2)."""
    generator = torch.Generator().manual_seed(0)
    dim, num_rows = 16, 4000
    teacher_D, other_D = torch.randn(2, 64, generator=generator)
    other_D = other_D - teacher_D * (other_D @ teacher_D) / teacher_D.square().sum()
    signs = (torch.randint(2, (num_rows, 64, dim), generator=generator) * 2 - 1).to(torch.int8)
    sketch = (teacher_D @ signs.float() / math.sqrt(dim))[:, None, None]
    layers = ProjectedLayers(sketch, signs, dim**-0.5)
    batch: Any = type("OfOnePosition", (), {"scored": torch.arange(num_rows)})
    along_BTD = (0.6 * teacher_D).expand(num_rows, 1, 64)
    found_NL = layers.relative_errors([along_BTD], batch)
    torch.testing.assert_close(found_NL, torch.full_like(found_NL, 0.16))
    across_BTD = (teacher_D + other_D).expand(num_rows, 1, 64)
    found_NL = layers.relative_errors([across_BTD], batch)
    exact = float(other_D.square().sum() / teacher_D.square().sum())
    error = float(found_NL.std()) / math.sqrt(num_rows)
    assert float(found_NL.mean()) == pytest.approx(exact * dim / (dim - 2), abs=4 * error)
    assert float(found_NL.mean()) > exact + 4 * error


def test_without_a_weight_it_is_not_computed(stored: Cache) -> None:
    batch = read_batch(stored, "train", [0], with_sketch=False)
    inputs = TermInputs(batch, torch.zeros(1, 32, 32), torch.zeros(0), TeacherTargets())
    found = LayerMSETerm()(inputs, 0.0, LossNormalizer(batch.num_scored, 1))
    assert found.weighted == found.values[0] == 0


def objective_of(config: TrainStudentConfig, cache: Cache) -> tuple[Any, Objective]:
    model = load_student(config, cache)
    return model, make_objective(model, cache, config, CPU)


@torch.no_grad()
def test_the_cache_holds_the_states_that_hugging_face_gives(root: Path, stored: Cache) -> None:
    batch = read_batch(stored, "train", [0, 2], with_sketch=True)
    assert batch.sketch is not None
    assert batch.projection is not None
    assert (batch.is_document_start.sum(1) > 1).any()
    auto: Any = AutoModelForCausalLM
    teacher = auto.from_pretrained(root / "teacher").eval()
    for row, is_start_T in enumerate(batch.is_document_start):
        matrix_Dd = batch.projection[row].float() / math.sqrt(8)
        edges = [*is_start_T.nonzero()[:, 0].tolist(), len(is_start_T)]
        for first, end in pairwise(edges):
            ids = batch.input_ids[row : row + 1, first:end]
            states = teacher(ids, output_hidden_states=True).hidden_states[1:]
            of_scored = batch.labels[row, first:end] >= 0
            for number, state_BTD in enumerate(states):
                found_Td = batch.sketch[row, first:end, number][of_scored]
                expected_Td = (state_BTD[0] @ matrix_Dd)[of_scored]
                torch.testing.assert_close(found_Td, expected_Td, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_an_unconverted_student_has_no_error(
    root: Path, stored: Cache, tmp_path: Path, dtype: str
) -> None:
    cache = stored
    if dtype == "int8":
        (tmp_path / "teacher").symlink_to(root / "teacher")
        layers: dict[str, Any] = {
            "hidden_states": "each:1,3",
            "hidden_projection": "rademacher",
        }
        cache = cache_format.open(hybrid_cache(tmp_path, **layers))
    error = {"float32": 1e-9, "int8": 1e-4}[dtype]
    batch = read_batch(cache, "train", range(4), with_sketch=True)
    step = LossNormalizer(batch.num_scored, 4)
    found = {}
    for pattern in ("attention", "hybrid"):
        config = distill_config(**_ALONE, pattern=pattern)
        model, objective = objective_of(config, cache)
        _, values = objective.micro_batch_loss(model, batch, loss_weights(config, 0, 10), step)
        assert objective.value_names[-1] == "layer_mse"
        found[pattern] = float(values[-1])
    assert found["attention"] < error
    assert found["hybrid"] > 1e-2  # its window is 6 positions


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_micro_batches_add_up_to_the_step(stored: Cache, precision: str) -> None:
    config = distill_config(
        **{"alpha_start": 0.3, "alpha_end": 0.3, "layer_mse_weight": 0.6, "precision": precision},
    )
    model, objective = objective_of(config, stored)
    rows = [read_batch(stored, "train", [index], with_sketch=True) for index in range(3)]
    whole = read_batch(stored, "train", range(3), with_sketch=True)
    step, normalizer = loss_weights(config, 0, 10), LossNormalizer(whole.num_scored, 3)
    trained = [p for p in model.parameters() if p.requires_grad]
    loss, values = objective.micro_batch_loss(model, whole, step, normalizer)
    expected = torch.autograd.grad(loss, trained)
    parts = [objective.micro_batch_loss(model, row, step, normalizer) for row in rows]
    summed = torch.stack([part[1] for part in parts]).sum(0)
    rtol = {"fp32": 1e-5, "bf16": 1e-2}[precision]
    torch.testing.assert_close(summed, values, atol=1e-6, rtol=rtol)
    if precision == "fp32":
        found = torch.autograd.grad(torch.stack([part[0] for part in parts]).sum(), trained)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    terms = 0.1 * values[1] + 0.3 * values[2] + 0.6 * values[4]
    assert loss.item() == pytest.approx(terms.item(), rel=1e-5)


def test_where_it_is_off_no_layer_is_kept_and_the_loss_is_bitwise_the_same(stored: Cache) -> None:
    config = distill_config()
    assert not cache_needs(config).reads_sketch
    model, objective = objective_of(config, stored)
    assert objective.layers == ()
    assert objective.value_names == ("loss", "cross_entropy", "kl", "frobenius")
    batch = read_batch(stored, "train", range(2), with_sketch=False)
    step = (loss_weights(config, 0, 10), LossNormalizer(batch.num_scored, 2))
    found = objective.micro_batch_loss(model, batch, *step)
    expected = replace(objective, further_terms=()).micro_batch_loss(model, batch, *step)
    assert torch.equal(found[0], expected[0])


class TestRefusals:
    @pytest.mark.parametrize(
        ("sketch", "found"),
        [
            (SketchSpec(kind="none", dim=0), "hidden_projection is 'none'"),
            (SketchSpec(kind="rademacher", dim=8), "hidden_states is 'mean_over_layers'"),
            (
                SketchSpec(kind="rademacher", dim=8, hidden_states="layers:1,2"),
                "hidden_states is 'layers:1,2'",
            ),
            (SketchSpec(kind="none", dim=0, hidden_states="each:1"), "hidden_projection is 'none'"),
        ],
        ids=["none", "mean", "layers", "none of each"],
    )
    def test_caches_without_single_layers_are_refused(
        self, tmp_path: Path, sketch: SketchSpec, found: str
    ) -> None:
        cache = write_cache(tmp_path / "cache", TARGETS["top_k"], sketch)
        config = distill_config(layer_mse_weight=0.1)
        message = rf"^train_student\.layer_mse_weight: .*\(cache_teacher\.{found}\).*'each:7,14,21'"
        with pytest.raises(ValueError, match=message):
            require_targets(config, cache, cache_needs(config))
        off = replace(config, layer_mse_weight=0.0)
        require_targets(off, cache, cache_needs(off))

    @pytest.mark.parametrize("layers", ["each:2", "each:1,2"])
    def test_caches_with_single_layers_are_taken(self, tmp_path: Path, layers: str) -> None:
        sketch = replace(RADEMACHER, hidden_states=layers)
        cache = write_cache(tmp_path / "cache", TARGETS["top_k"], sketch)
        config = distill_config(layer_mse_weight=0.1)
        require_targets(config, cache, cache_needs(config))

    def test_a_teacher_in_the_loop_is_refused(self, stored: Cache) -> None:
        config = distill_config(layer_mse_weight=0.1)
        message = r"^train_student\.layer_mse_weight: a teacher in the loop"
        with pytest.raises(ValueError, match=message):
            require_targets(config, stored, cache_needs(config), online=True)
        off = replace(config, layer_mse_weight=0.0)
        require_targets(off, stored, cache_needs(off), online=True)

    def test_students_that_do_not_hold_their_teacher_are_refused(self) -> None:
        student = student_settings("distil_xlstm")
        with pytest.raises(ValueError, match=r'^layer_mse_weight: must be 0 .*"distil_xlstm"'):
            TrainStudentConfig(student=student, layer_mse_weight=0.1)

    def test_a_student_of_other_layers_is_refused(self, stored: Cache) -> None:
        config = distill_config(layer_mse_weight=0.1)
        model: Any = load_student(config, stored)
        model.model.layers = model.model.layers[:2]
        message = r"^train_student\.layer_mse_weight: .* 3 layers of width 32, the student 2"
        with pytest.raises(ValueError, match=message):
            make_objective(model, stored, config, CPU)

    def test_an_alignment_has_no_such_term(self) -> None:
        message = r"^layer_mse_weight: must be 0 with the objective align"
        with pytest.raises(ValueError, match=message):
            align_config(layer_mse_weight=0.1, alpha_start=0.1, alpha_end=0.1)

    def test_the_labels_have_what_is_left(self) -> None:
        assert LossWeights(0.4, 0.1, 1.0, 0.2, 0.2).cross_entropy == pytest.approx(0.1)
        assert LossWeights(0.0, 0.0, 1.0, layer_mse=0.3).uses_teacher
        assert not LossWeights(0.0, 0.0, 1.0, layer_mse=0.3).reads_distribution
        given = {"state_mse_weight": 0.2, "alpha_start": 0.5, "alpha_end": 0.5}
        assert distill_config(layer_mse_weight=0.3, **given).layer_mse_weight == 0.3
        formula = r"1 − β − state_mse_weight − layer_mse_weight = 0\.49,"
        with pytest.raises(ValueError, match=rf"^alpha_start: must be at most {formula}"):
            distill_config(layer_mse_weight=0.31, **given)
        for weight in (-0.1, 1.1):
            with pytest.raises(ValueError, match=r"^layer_mse_weight: must be from 0 to 1"):
                distill_config(layer_mse_weight=weight)


@pytest.fixture(scope="module")
def whole(root: Path) -> Path:
    """An uninterrupted run of the new weights on layers alone."""
    run(distill_config(**_NEW), root / "cache", root / "whole")
    return root / "whole"


class TestRuns:
    def test_new_weights_come_nearer_to_the_teachers_layers(self, whole: Path) -> None:
        rows = [row for row in metrics(whole) if "train/layer_mse" in row]
        assert rows[0]["schedule/layer_mse"] == 1.0
        assert "schedule/state_mse" not in rows[0]
        assert rows[0]["train/loss"] == pytest.approx(rows[0]["train/layer_mse"])
        assert rows[-1]["train/layer_mse"] < 0.95 * rows[0]["train/layer_mse"]

    def test_a_stopped_run_resumes_bitwise(self, root: Path, whole: Path, tmp_path: Path) -> None:
        out, last = tmp_path / "run", 0

        def report(progress: TrainProgress) -> None:
            nonlocal last
            last = progress.step

        config, cache = distill_config(**_NEW), root / "cache"
        with pytest.raises(StoppedError):
            run(config, cache, out, report=report, stop=lambda: last == 2)
        run(config, cache, out, resume=True)
        assert metrics(out) == metrics(whole)
        expected = weights(whole)
        for name, tensor in weights(out).items():
            assert torch.equal(tensor, expected[name]), name
