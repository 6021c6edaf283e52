"""Validation against the same figures computed from full logits, row by row."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import cache_format
from stages.train_student.evaluation.validation import score, validate, validation_batches
from stages.train_student.losses.objective import make_objective
from stages.train_student.new_student import load_student
from tests.support.student_caches import TARGETS, write_cache
from tests.support.train_configs import tiny_train_config


def test_metrics_equal_those_of_full_logits(tiny_cache: Path) -> None:
    cache = cache_format.open(tiny_cache)
    model: Any = load_student(tiny_train_config(), cache)
    vocab_size = cache.spec.teacher.vocab_size
    found = validate(
        model,
        make_objective(model, cache, tiny_train_config(loss_chunk=17), torch.device("cpu")),
        cache,
        num_rows=5,
        max_rows=100,
        batch_size=2,
    )
    model.train(False)
    loss, kl, agreeing, teacher_loss, count = 0.0, 0.0, 0, 0.0, 0
    bins = torch.zeros(2, 2, 15, dtype=torch.float64)  # student, teacher; sure, right
    for index in range(5):
        _, row = cache.read_row("validation", index)
        starts = torch.zeros(1, 32, dtype=torch.bool)
        starts[0, [s for s in row.document_starts.tolist() if s < 32]] = True
        with torch.no_grad():
            inputs = torch.from_numpy(row.token_ids[None, :-1].astype("int64"))
            logits = model(inputs, is_document_start=starts).logits[0].double()
        assert logits.shape[1] == vocab_size
        logq = logits.log_softmax(1)
        begin = 0
        for t in row.scored().nonzero()[0].tolist():
            kept = int(row.kept.num_ids[t])
            ids = torch.from_numpy(row.kept.ids[begin : begin + kept].astype("int64"))
            gaps = torch.from_numpy(row.kept.gaps[begin : begin + kept]).double()
            begin += kept
            tail = torch.tensor([row.kept.tail_log_mass[t, -1]]).double()
            p = torch.cat((-gaps, tail)).softmax(0)
            q = logq[t, ids].exp()
            q = torch.cat((q, 1 - q.sum(0, keepdim=True)))
            kl += float((p * (p / q).log()).sum())
            loss -= float(logq[t, row.token_ids[t + 1]])
            agreeing += int(logits[t].argmax() == ids[0])
            choices = ((logq[t].max().exp(), logits[t].argmax()), (p[0], ids[0]))
            for who, (confidence, choice) in enumerate(choices):
                number = int(confidence * 15)
                bins[who, 0, number] += confidence
                bins[who, 1, number] += int(choice == int(row.token_ids[t + 1]))
            teacher_loss -= float(row.kept.next_logprob[t])
            count += 1
    assert found["validation/loss"] == pytest.approx(loss / count, rel=1e-5)
    assert found["validation/perplexity"] == pytest.approx(math.exp(loss / count), rel=1e-4)
    assert found["validation/kl"] == pytest.approx(kl / count, rel=1e-4)
    assert found["validation/agreement"] == pytest.approx(agreeing / count)
    errors = ((bins[:, 0] - bins[:, 1]).abs().sum(1) / count).tolist()
    for who, prefix in enumerate(("validation/", "validation/teacher_")):
        assert found[f"{prefix}accuracy"] == pytest.approx(float(bins[who, 1].sum()) / count)
        assert found[f"{prefix}ece"] == pytest.approx(errors[who], rel=1e-5)
    assert found["validation/teacher_loss"] == pytest.approx(teacher_loss / count, rel=1e-6)


def test_sampled_targets_give_no_teacher_accuracy(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", TARGETS["sampled"])
    model = load_student(tiny_train_config(), cache)
    objective = make_objective(model, cache, tiny_train_config(), torch.device("cpu"))
    found = score(model, objective, validation_batches(cache, 5, 5, 2))
    assert {"validation/accuracy", "validation/ece", "validation/teacher_loss"} <= found.keys()
    assert not {"validation/teacher_accuracy", "validation/teacher_ece"} & found.keys()


def test_validation_without_a_scored_position_is_refused(tiny_cache: Path) -> None:
    cache = cache_format.open(tiny_cache)
    model = load_student(tiny_train_config(), cache)
    objective = make_objective(model, cache, tiny_train_config(), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"no position has a label .* Read more validation rows"):
        score(model, objective, iter(()))
    assert model.training


def test_validation_rows_are_spread_over_the_split(tiny_cache: Path) -> None:
    cache = cache_format.open(tiny_cache)
    num_rows = cache.num_rows("validation")
    batches = list(validation_batches(cache, num_rows, max_rows=4, batch_size=3))
    assert [batch.num_rows for batch in batches] == [3, 1]
    last = cache.read_row("validation", num_rows - 1)[1].token_ids[:-1].tolist()
    assert batches[-1].input_ids[-1].tolist() == last
