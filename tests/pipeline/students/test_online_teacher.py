"""The teacher in the loop: it is the cache's, and what it teaches is what the cache tells.

A cache that keeps all ids and as many components as there are dimensions loses nothing but its
codec's rounding, so both ways must agree within a bound that follows from that rounding alone.
"""

import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import cache_format
from cache_format.metadata.recipe_file import seal_recipe
from cache_format.reader import Cache
from pipeline.students.online_teacher import LoadedTeacher, load_online_teacher
from stages.cache_teacher.run import cache_teacher
from stages.train_student.data.batch import Batch, read_batch
from stages.train_student.data.targets.dense_targets import DenseTargets
from stages.train_student.data.targets.ids import sparse_targets
from stages.train_student.losses.loss_term import LossNormalizer
from stages.train_student.losses.objective import Objective, make_objective
from stages.train_student.losses.teacher_signal import OnlineSignal
from stages.train_student.losses.terms import LossWeights
from stages.train_student.losses.vocabulary_pass import VocabularyWeights
from stages.train_student.new_student import load_student
from tests.support.batches import ids_of
from tests.support.tiny import (
    save_tiny_teacher,
    tiny_cache_config,
    tiny_texts,
    write_fineweb_parquet,
)
from tests.support.train_configs import train_config

CPU = torch.device("cpu")
NUM_LEVELS = 255
NUM_IDS = 320


def make_cache(root: Path, **changes: Any) -> Path:
    """A cache of all ids and 32 components, both as exact as the format has them."""
    settings: dict[str, Any] = {
        "top_k": NUM_IDS,
        "num_levels": NUM_LEVELS,
        "hidden_projection": "pca",
        "hidden_projection_dim": 32,
        "hidden_projection_dtype": "float32",
    }
    teacher, corpus = root / "teacher", root / "corpus.parquet"
    if not teacher.exists():
        save_tiny_teacher(teacher)
        write_fineweb_parquet(corpus, tiny_texts(60))
    config = tiny_cache_config(teacher, corpus, **(settings | changes))
    recipe = f"[cache_teacher]\nteacher = {json.dumps(str(teacher))}\n"
    target = root / f"cache-{len(list(root.iterdir()))}"
    cache_teacher(config, target, recipe_toml=recipe, report=lambda _: None)
    return target


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("online")


@pytest.fixture(scope="module")
def whole(root: Path) -> Cache:
    return cache_format.open(make_cache(root))


@dataclass(frozen=True)
class Scene:
    """One batch, a student, and the objective from the cache and from the teacher."""

    batch: Batch
    model: Any
    cached: Objective
    online: Objective
    teacher: LoadedTeacher

    @property
    def head_VD(self) -> torch.Tensor:
        """The student's."""
        return self.cached.head_of(self.model)

    def terms(self, objective: Objective, weights: LossWeights) -> torch.Tensor:
        """(loss, CE, KL, L_F), leaving the gradient in the model."""
        normalizer = LossNormalizer(self.batch.num_scored, self.batch.num_rows)
        self.model.zero_grad()
        loss, terms = objective.micro_batch_loss(self.model, self.batch, weights, normalizer)
        loss.backward()  # type: ignore[no-untyped-call]
        return terms

    def gradient(self) -> torch.Tensor:
        """What is left in the model, as one vector."""
        parts = [p.grad.flatten() for p in self.model.parameters() if p.grad is not None]
        return torch.cat(parts)


def make_scene(cache: Cache) -> Scene:
    config = train_config(
        num_blocks=2,
        slstm_at=(0,),
        num_heads=2,
        qkv_block_size=4,
        precision="fp32",
        loss_chunk=50,
        compile="off",
    )
    model = load_student(config, cache)
    cached = make_objective(model, cache, config, CPU)
    teacher = load_online_teacher(cache, CPU, with_mean=cache.spec.sketch.kind != "none")
    online = replace(cached, signal=OnlineSignal(teacher))
    batch = read_batch(cache, "train", [0, 5, 11], with_sketch=cache.spec.sketch.kind != "none")
    return Scene(batch, model, cached, online, teacher)


@pytest.fixture(scope="module")
def scene(whole: Cache) -> Scene:
    return make_scene(whole)


def exact_logits(scene: Scene) -> torch.Tensor:
    """The teacher's at scored positions, relative to the largest; float64 [N, V]."""
    states = scene.teacher.states(scene.batch.input_ids, scene.batch.is_document_start)
    last_ND = states.last_BTD[scene.batch.labels >= 0].double()
    logits_NV = last_ND @ scene.teacher.head_VD.double().T
    return logits_NV - logits_NV.amax(1, keepdim=True)


def stored_probabilities(scene: Scene, temperature: float) -> torch.Tensor:
    """What the cache says of all ids, [N, V]."""
    targets = sparse_targets(ids_of(scene.batch), scene.batch.scored, scene.cached.spec.targets)
    log_p_NK, log_p_tail_N = targets.logprobs(temperature)
    assert (log_p_tail_N == -math.inf).all()
    p_NV = torch.zeros(log_p_NK.shape, dtype=torch.float64)
    return p_NV.scatter_(1, targets.kept_ids_NK, log_p_NK.double().exp())


def rounding(p_NV: torch.Tensor, temperature: float) -> torch.Tensor:
    """The most that each probability at T can be off by, [N, V], ``p_NV`` being exact at T = 1.

    The format rounds x = p^(1/4) to steps of 1/L: by up to h = 1/2L. At T, what counts is
    u = x^(4/T), convex in x for T ≤ 4, hence off by up to d = (x + h)^(4/T) − x^(4/T). Divided by
    its sum U, which is off by up to D = Σd, a share p = u/U is off by (d + p·D)/(U − D) at most.
    """
    x_NV, power, half_step = p_NV**0.25, 4 / temperature, 1 / (2 * NUM_LEVELS)
    u_NV = x_NV**power
    d_NV = (x_NV + half_step) ** power - u_NV
    sum_N1, off_N1 = u_NV.sum(1, keepdim=True), d_NV.sum(1, keepdim=True)
    return (d_NV + u_NV / sum_N1 * off_N1) / (sum_N1 - off_N1)


@pytest.mark.parametrize("temperature", [1.0, 1.6, 2.0])
def test_a_cache_of_all_ids_equals_the_teacher_within_rounding(
    scene: Scene, temperature: float
) -> None:
    logits_NV = exact_logits(scene)
    error_NV = stored_probabilities(scene, temperature) - (logits_NV / temperature).softmax(1)
    bound_NV = rounding(logits_NV.softmax(1), temperature)
    assert (error_NV.abs() <= bound_NV + 1e-6).all()
    assert error_NV.abs().max() > 1e-4  # the bound is of something


@pytest.mark.parametrize("temperature", [1.0, 1.6, 2.0])
def test_cached_and_online_loss_terms_agree_within_codec_rounding(
    scene: Scene, temperature: float
) -> None:
    """KL is convex in p: KL(p̂) − KL(p) lies between its slopes at p and p̂ times p̂ − p."""
    weights = LossWeights(alpha=0.6, beta=0.2, temperature=temperature)
    cached = scene.terms(scene.cached, weights)
    online = scene.terms(scene.online, weights)
    logits_NV = exact_logits(scene)
    with torch.no_grad():
        hidden = scene.model.hidden_states(scene.batch.input_ids, scene.batch.is_document_start)
        student_ND = hidden[scene.batch.labels >= 0].double()
    log_q_NV = (student_ND @ scene.head_VD.double().T / temperature).log_softmax(1)
    log_p_NV = (logits_NV / temperature).log_softmax(1)
    log_stored_NV = stored_probabilities(scene, temperature).log()
    slope_NV = torch.maximum((log_p_NV - log_q_NV).abs(), (log_stored_NV - log_q_NV).abs())
    bound = (rounding(logits_NV.softmax(1), temperature) * slope_NV).sum(1).mean()
    assert online[1].item() == pytest.approx(cached[1].item(), rel=1e-6)
    assert abs(online[2] - cached[2]) <= bound
    assert bound < 0.2 * online[2]  # or it would say little
    exact_kl = (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(1).mean()
    assert online[2].item() == pytest.approx(exact_kl.item(), abs=1e-5)
    # 32 components of 32 dimensions, stored in float32: nothing is lost.
    assert online[3].item() == pytest.approx(cached[3].item(), rel=1e-5)
    assert online[3] > 0.1


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_cached_and_online_gradients_agree_within_codec_rounding(
    scene: Scene, temperature: float
) -> None:
    """dKL/dz = (q − p)/T, so by a hidden state it is off by Σ|p̂ − p|·‖w‖/T at the most."""
    is_scored = scene.batch.labels >= 0
    with torch.no_grad():
        hidden = scene.model.hidden_states(scene.batch.input_ids, scene.batch.is_document_start)
    leaf_ND = hidden[is_scored].requires_grad_()
    states = scene.teacher.states(scene.batch.input_ids, scene.batch.is_document_start)
    dense = DenseTargets(states.last_BTD[is_scored], scene.teacher.head_VD)
    sparse = sparse_targets(ids_of(scene.batch), scene.batch.scored, scene.cached.spec.targets)
    own = (leaf_ND, scene.head_VD, scene.batch.labels[is_scored])
    weighting = VocabularyWeights(0.3, 1.0, temperature)
    (by_online,) = torch.autograd.grad(
        scene.cached.vocabulary.dense_loss(*own, dense, weighting).weighted, leaf_ND
    )
    (by_cached,) = torch.autograd.grad(
        scene.cached.vocabulary.sparse_loss(*own, sparse, weighting).weighted, leaf_ND
    )
    bound_NV = rounding(exact_logits(scene).softmax(1), temperature)
    bound_N = bound_NV @ scene.head_VD.double().norm(dim=1) / temperature
    assert ((by_online - by_cached).norm(dim=1) <= bound_N + 1e-5).all()
    assert (by_online - by_cached).norm() < 0.01 * by_online.norm()  # 0.002 when this was written


def test_with_exact_logit_gaps_cached_and_online_losses_are_equal(scene: Scene) -> None:
    """What is left of the difference once the codec is taken out: nothing."""
    is_scored = scene.batch.labels >= 0
    targets = ids_of(scene.batch)
    gaps, kept_NK = targets.logit_gaps.clone(), targets.kept_ids[is_scored]
    gaps[is_scored] = -exact_logits(scene).gather(1, kept_NK).float()
    exact = replace(scene, batch=replace(scene.batch, targets=replace(targets, logit_gaps=gaps)))
    for weights in (LossWeights(0.6, 0.2, 1.5), LossWeights(0.0, 0.4, 1.0), LossWeights(0, 0, 1)):
        cached = exact.terms(scene.cached, weights)
        by_cached = exact.gradient()
        online = exact.terms(scene.online, weights)
        torch.testing.assert_close(online, cached, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(exact.gradient(), by_cached, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hidden_states", ["mean_over_layers", "last", "layers:1"])
def test_frobenius_from_int8_sketches_is_within_half_a_step(root: Path, hidden_states: str) -> None:
    """Of each row the largest of 32 numbers is 127 steps, of 1 + 2⁻⁷ of that at the most.

    Rounded by half of one, a root of the mean of squares moves by no more.
    """
    cache = cache_format.open(
        make_cache(root, hidden_projection_dtype="int8", top_k=8, hidden_states=hidden_states)
    )
    scene, weights = make_scene(cache), LossWeights(0.0, 0.4, 1.0)
    cached = scene.terms(scene.cached, weights)
    without = replace(scene, batch=replace(scene.batch, sketch=None, projection=None))
    online = without.terms(scene.online, weights)
    states = scene.teacher.states(scene.batch.input_ids, scene.batch.is_document_start)
    assert states.mean_BTD is not None
    assert cache.projection is not None
    stored = states.mean_BTD @ torch.from_numpy(cache.projection.copy())
    step = stored[scene.batch.labels >= 0].abs().amax() / 127 * (1 + 2**-7)
    assert abs(online[3] - cached[3]) <= step / 2
    assert step / 2 < 0.05 * online[3]


def test_cached_and_online_loss_curves_agree_over_a_few_steps(scene: Scene, whole: Cache) -> None:
    """Within 0.1 % of each other in every term: the codec's error does not add up."""
    curves = []
    for objective in (scene.cached, scene.online):
        model = make_scene(whole).model
        own = replace(scene, model=model)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
        losses = []
        for step in range(8):
            losses.append(own.terms(objective, LossWeights(0.7, 0.1, 2.0 - step / 8)))
            optimizer.step()
        curves.append(torch.stack(losses))
    cached, online = curves
    assert online[-1, 1] < 0.9 * online[0, 1]  # something was learned
    torch.testing.assert_close(online, cached, rtol=1e-3, atol=0)


def test_without_the_frobenius_term_no_hidden_layer_is_kept(whole: Cache) -> None:
    teacher = load_online_teacher(whole, CPU, with_mean=False)
    batch = read_batch(whole, "train", [0], with_sketch=False)
    states = teacher.states(batch.input_ids, batch.is_document_start)
    assert states.mean_BTD is None
    assert states.last_BTD.shape == (1, 32, 32)


class TestRefused:
    def test_a_teacher_other_than_that_of_the_cache_is_refused(
        self, whole: Cache, tmp_path: Path
    ) -> None:
        other = save_tiny_teacher(tmp_path / "other", seed=1)
        with pytest.raises(ValueError, match=r"not the teacher.*teacher\.weights_sha256: expected"):
            load_online_teacher(whole, CPU, with_mean=True, place=str(other))

    def test_a_moved_teacher_is_refused_unless_its_new_path_is_given(
        self, tiny_cache: Path, tmp_path: Path
    ) -> None:
        recipe = f"[cache_teacher]\nteacher = {json.dumps(str(tmp_path / 'gone'))}\n"
        shutil.copytree(tiny_cache, tmp_path / "cache")
        cache = cache_format.open(tmp_path / "cache")
        (tmp_path / "cache" / "recipe.toml").write_bytes(seal_recipe(recipe, cache.cache_id))
        with pytest.raises(ValueError, match="--teacher-in-the-loop DIRECTORY"):
            load_online_teacher(cache, CPU, with_mean=False)
        place = str(tiny_cache.parent / "teacher")
        assert load_online_teacher(cache, CPU, with_mean=False, place=place).head_VD.shape[1] == 32

    @pytest.mark.parametrize("hidden_states", ["random_layers:1", "each:1,2"])
    def test_layers_that_are_no_one_state_are_refused_with_the_frobenius_term(
        self, root: Path, hidden_states: str
    ) -> None:
        cache = cache_format.open(make_cache(root, top_k=8, hidden_states=hidden_states))
        with pytest.raises(
            ValueError, match=r"cache_teacher\.hidden_states.*beta_start and beta_end"
        ):
            load_online_teacher(cache, CPU, with_mean=True)
        assert load_online_teacher(cache, CPU, with_mean=False)
