"""Hidden states from a cache: what they decode to, and the loss that is made of them."""

from pathlib import Path
from typing import Any

import pytest
import torch

import cache_format
from cache_format.reader import Cache
from stages.cache_teacher.run import cache_teacher
from stages.train_student.data.batch import Batch, read_batch
from stages.train_student.data.targets.dense_targets import DenseTargets
from stages.train_student.data.targets.hidden import HiddenDecoder
from stages.train_student.data.targets.kind import HeadOnDevice
from stages.train_student.data.teacher_files import teacher_head
from stages.train_student.evaluation.validation import validate
from stages.train_student.losses.dense_kl import DenseDistillationLoss
from stages.train_student.losses.objective import make_objective
from stages.train_student.losses.vocabulary_pass import VocabularyWeights
from stages.train_student.new_student import load_student
from stages.train_student.run import train_student
from tests.support.tiny import (
    save_tiny_teacher,
    tiny_cache_config,
    tiny_texts,
    write_fineweb_parquet,
)
from tests.support.train_configs import tiny_train_config
from tests.support.train_runs import metrics

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["tied", "untied"])
def cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    root = tmp_path_factory.mktemp("hidden")
    teacher = save_tiny_teacher(root / "teacher", tie=request.param == "tied")
    corpus = write_fineweb_parquet(root / "corpus.parquet", tiny_texts(80))
    config = tiny_cache_config(teacher, corpus, targets="hidden", documents_per_unit=20)
    cache_teacher(config, root / "cache", report=lambda _: None)
    return cache_format.open(root / "cache")


def decoded(cache: Cache, batch: Batch) -> DenseTargets:
    decode = HiddenDecoder(cache, HeadOnDevice(CPU, torch.float32))
    targets: Any = batch.targets
    return decode(targets, batch.scored)


def test_decoded_states_are_those_of_the_transform(cache: Cache) -> None:
    batch = read_batch(cache, "train", [0, 3], with_sketch=False)
    rows = [cache.read_row("train", index)[1] for index in (0, 3)]
    expected = []
    for row in rows:
        assert row.coefficients is not None
        expected.append(cache.tables.hidden_transform.states(row.coefficients[row.scored()]))
    found = decoded(cache, batch).hidden_ND
    torch.testing.assert_close(found, torch.cat([torch.from_numpy(one) for one in expected]))


def test_the_head_is_the_teachers_without_padding(cache: Cache) -> None:
    batch = read_batch(cache, "train", [0], with_sketch=False)
    head_VD = decoded(cache, batch).head_VD
    assert head_VD.shape == (cache.spec.teacher.vocab_size, cache.spec.teacher.hidden_size)
    torch.testing.assert_close(head_VD, teacher_head(cache))


def test_a_frozen_head_is_not_held_twice(cache: Cache) -> None:
    same, other = teacher_head(cache).clone(), teacher_head(cache) + 1
    assert HeadOnDevice(CPU, torch.float32, same).place(teacher_head(cache)) is same
    assert HeadOnDevice(CPU, torch.float32, other).place(teacher_head(cache)) is not other


@pytest.mark.parametrize("temperature", [1.0, 1.7, 4.0])
def test_kl_and_gradient_are_those_of_float64_over_the_whole_vocabulary(
    cache: Cache, temperature: float
) -> None:
    """For a trained head of the student's own, too."""
    batch = read_batch(cache, "train", [1, 2], with_sketch=False)
    targets = decoded(cache, batch)
    generator = torch.Generator().manual_seed(0)
    shapes = (targets.hidden_ND.shape, targets.head_VD.shape)
    leaves = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    labels = batch.labels.flatten()[batch.scored]
    loss = DenseDistillationLoss(chunk=13, dtype=torch.float32, compile="off", device=CPU)
    weights = VocabularyWeights(cross_entropy=0.0, kl=1.0, temperature=temperature)
    sums = loss(leaves[0], leaves[1], labels, targets, weights)
    gradients = torch.autograd.grad(sums.weighted, leaves)

    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    log_q = torch.log_softmax(exact[0] @ exact[1].T / temperature, 1)
    teacher = targets.hidden_ND.double() @ targets.head_VD.double().T
    log_p = torch.log_softmax(teacher / temperature, 1)
    kl = (log_p.exp() * (log_p - log_q)).sum()
    torch.testing.assert_close(sums.kl, kl.detach(), rtol=1e-5, atol=1e-5)
    for found, expected in zip(gradients, torch.autograd.grad(kl, exact), strict=True):
        scale = float(expected.abs().max())
        assert float((found - expected).abs().max()) <= 1e-5 * max(1.0, scale)


def test_validation_tells_of_the_teacher_without_stored_log_probabilities(cache: Cache) -> None:
    config = tiny_train_config()
    model = load_student(config, cache)
    objective = make_objective(model, cache, config, CPU)
    figures = validate(model, objective, cache, num_rows=4, max_rows=4, batch_size=2)
    batch = read_batch(cache, "validation", [0, 1, 2, 3], with_sketch=False)
    assert batch.next_logprob is None
    targets, labels = decoded(cache, batch), batch.labels.flatten()[batch.scored]
    log_p = torch.log_softmax(targets.hidden_ND.double() @ targets.head_VD.double().T, 1)
    choice = log_p.argmax(1)
    expected = {
        "teacher_loss": -log_p.gather(1, labels[:, None]).mean().item(),
        "teacher_accuracy": (choice == labels).double().mean().item(),
    }
    for name, value in expected.items():
        assert figures[f"validation/{name}"] == pytest.approx(value, rel=1e-5), name
    assert 0 < figures["validation/teacher_ece"] < 1
    assert figures["validation/kl"] > 0


def test_a_student_learns_from_the_cache_alone(cache: Cache, tmp_path: Path) -> None:
    config = tiny_train_config(max_steps=25, eval_steps=25, save_steps=25)
    train_student(config, cache, tmp_path / "run")
    found = [line["validation/kl"] for line in metrics(tmp_path / "run") if "validation/kl" in line]
    assert found[-1] < found[0]


def test_sampled_columns_of_the_head_are_refused(cache: Cache, tmp_path: Path) -> None:
    config = tiny_train_config(sampled_softmax_size=20)
    with pytest.raises(ValueError, match=r"sampled_softmax_size: .* 'top_k\+hidden'"):
        train_student(config, cache, tmp_path / "run")
