"""Loader, objective, validation and training on caches of every kind of target and sketch."""

import json
import math
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache_format.codec.row import KeptIds, Row
from cache_format.metadata.spec_parts.sketch import SketchSpec
from cache_format.reader import Cache
from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.batch import Batch, read_batch
from stages.train_student.data.targets.ids import IdTargets, SampledIds, sparse_targets
from stages.train_student.data.teacher_files import teacher_head
from stages.train_student.evaluation.validation import validate
from stages.train_student.losses.loss_term import LossNormalizer
from stages.train_student.losses.objective import Objective, make_objective
from stages.train_student.losses.terms import LossWeights
from stages.train_student.new_student import load_student
from stages.train_student.run import train_student
from tests.support.batches import ids_of, tensors_of
from tests.support.context_rows import CONTEXT, write_context_cache
from tests.support.sample_cache import pca_sketch, sample_spec
from tests.support.student_caches import TARGETS, TEMPERATURES, write_cache
from tests.support.train_configs import train_config

_RADEMACHER = SketchSpec(kind="rademacher", dim=8)


def config_for(kind: str, **changes: Any) -> TrainStudentConfig:
    start, end = TEMPERATURES.get(kind, (2.0, 1.0))
    settings: dict[str, Any] = {
        "num_blocks": 1,
        "slstm_at": (),
        "num_heads": 2,
        "qkv_block_size": 4,
        "temperature_start": start,
        "temperature_end": end,
        "learning_rate": 3e-2,
        "batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": 30,
        "precision": "fp32",
        "loss_chunk": 7,
        "compile": "off",
        "logging_steps": 1,
        "eval_steps": 30,
        "save_steps": 30,
    }
    return train_config(**(settings | changes))


def objective_of(config: TrainStudentConfig, cache: Cache) -> tuple[Any, Objective]:
    model = load_student(config, cache)
    return model, make_objective(model, cache, config, torch.device("cpu"))


def _of_positions(targets: Any) -> Iterator[torch.Tensor]:
    """Every tensor of a batch's targets, [R, T, …]."""
    for value in vars(targets).values():
        if isinstance(value, torch.Tensor):
            yield value
        elif value is not None:
            yield from _of_positions(value)


class TestLoader:
    def test_tail_samples_of_a_batch_are_those_of_its_rows(self, tmp_path: Path) -> None:
        cache = write_cache(tmp_path / "cache", TARGETS["top_k+sampled"])
        batch = read_batch(cache, "train", [4, 1, 2], with_sketch=False)
        samples = ids_of(batch).samples
        assert samples is not None
        assert samples.ids.shape == (3, 12, 9)
        for place, index in enumerate((4, 1, 2)):
            draws = cache.read_row("train", index)[1].kept.draws
            assert draws is not None
            begin = 0
            for t, count in enumerate(draws.num_ids.tolist()):
                found = slice(begin, begin + count)
                assert samples.ids[place, t, :count].tolist() == draws.ids[found].tolist()
                assert samples.counts[place, t, :count].tolist() == draws.counts[found].tolist()
                assert samples.logit_gaps[place, t, :count].tolist() == draws.gaps[found].tolist()
                assert not samples.counts[place, t, count:].any()
                begin += count
            assert begin == len(draws.ids) > 0

    @pytest.mark.parametrize("kind", ["top_k", "sampled"])
    def test_batches_of_caches_without_tail_samples_have_none(
        self, tmp_path: Path, kind: str
    ) -> None:
        cache = write_cache(tmp_path / "cache", TARGETS[kind])
        batch = read_batch(cache, "train", [0], with_sketch=False)
        assert ids_of(batch).samples is None

    @pytest.mark.parametrize("kind", ["sampled", "sampled hot"])
    def test_sampled_logprobs_at_their_temperature_are_log_counts(
        self, tmp_path: Path, kind: str
    ) -> None:
        cache = write_cache(tmp_path / "cache", TARGETS[kind])
        batch = read_batch(cache, "train", [0, 3], with_sketch=False)
        targets = sparse_targets(ids_of(batch), batch.scored, cache.spec.targets)
        shares = targets.logprobs(TEMPERATURES[kind][0])[0].exp()
        kept = torch.isfinite(targets.gaps_NK)
        rows = [cache.read_row("train", index)[1] for index in (0, 3)]
        counts = np.concatenate([row.kept.counts for row in rows if row.kept.counts is not None])
        torch.testing.assert_close(shares[kept], torch.from_numpy(counts / 50), rtol=1e-5, atol=0)
        # The teacher's choice is the id that was drawn most.
        assert (shares[:, :1] >= shares).all()

    def test_rows_share_one_principal_component_matrix(self, tmp_path: Path) -> None:
        cache = write_cache(tmp_path / "cache", TARGETS["top_k"], pca_sketch())
        batch = read_batch(cache, "train", [0, 1, 2], with_sketch=True)
        assert batch.projection is not None
        assert cache.projection is not None
        assert torch.equal(batch.projection[0], torch.from_numpy(cache.projection.copy()))
        assert batch.projection.shape == (1, 16, 8)
        assert batch.sketch is not None
        assert len(batch.sketch) == 3

    def test_each_hidden_state_of_a_row_is_in_its_batch(self, tmp_path: Path) -> None:
        sketch = SketchSpec(kind="rademacher", dim=8, hidden_states="each:1,2")
        cache = write_cache(tmp_path / "cache", TARGETS["top_k"], sketch)
        batch = read_batch(cache, "train", [3, 0], with_sketch=True)
        assert batch.sketch is not None
        assert batch.sketch.shape == (2, 12, 2, 8)
        for found, index in zip(batch.sketch, (3, 0), strict=True):
            np.testing.assert_array_equal(found, cache.read_row("train", index)[1].sketch)

    @pytest.mark.parametrize("kind", list(TARGETS))
    def test_context_positions_have_neither_label_nor_targets(
        self, tmp_path: Path, kind: str
    ) -> None:
        plain = write_cache(tmp_path / "plain", TARGETS[kind])
        cache = write_context_cache(tmp_path / "cache", plain.spec)
        before, batch = (
            read_batch(of, "train", [1, 4], with_sketch=False) for of in (plain, cache)
        )
        is_context = np.zeros((2, 12), bool)
        is_context[:, CONTEXT] = True
        is_scored = (before.labels.numpy() >= 0) & ~is_context
        assert is_scored.sum() < (before.labels >= 0).sum()
        np.testing.assert_array_equal(batch.labels, np.where(is_scored, before.labels, -100))
        assert batch.scored.tolist() == np.flatnonzero(is_scored).tolist()
        assert torch.equal(batch.input_ids, before.input_ids)
        assert torch.equal(batch.is_document_start, before.is_document_start)
        found, expected = (list(_of_positions(one.targets)) for one in (batch, before))
        assert len(found) == len(expected) > 0
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one[is_scored], other[is_scored])

    def test_rows_have_the_projection_signs_of_their_unit(self, tmp_path: Path) -> None:
        cache = write_cache(tmp_path / "cache", TARGETS["top_k"])
        batch = read_batch(cache, "validation", [0, 4, 1], with_sketch=True)  # of units 0, 3, 0
        assert batch.projection is not None
        assert torch.equal(batch.projection[0], batch.projection[2])
        assert not torch.equal(batch.projection[0], batch.projection[1])


@pytest.mark.parametrize("sketch", [_RADEMACHER, pca_sketch()], ids=lambda s: str(s.kind))
def test_the_frobenius_term_projects_the_student_as_the_teacher_was(
    tmp_path: Path, sketch: SketchSpec
) -> None:
    cache = write_cache(tmp_path / "cache", TARGETS["top_k"], sketch)
    model, objective = objective_of(config_for("top_k"), cache)
    batch = read_batch(cache, "train", [0, 1], with_sketch=True)
    _, terms = objective.micro_batch_loss(
        model, batch, LossWeights(0.0, 1.0, 1.0), LossNormalizer(batch.num_scored, 2)
    )
    assert batch.sketch is not None
    assert batch.projection is not None
    with torch.no_grad():
        hidden = model.hidden_states(batch.input_ids, batch.is_document_start).double()
    matrix = batch.projection.double()
    if sketch.kind == "rademacher":
        assert (matrix.abs() == 1).all()
        matrix = matrix / math.sqrt(8)
    is_scored = batch.labels >= 0
    squares = (hidden @ matrix - batch.sketch[:, :, 0]).square().sum(2)[is_scored]
    assert terms[3].item() == pytest.approx((squares.mean() / 16).sqrt().item(), rel=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in TARGETS if "hidden" not in kind])
def test_training_lowers_the_kl_divergence_on_every_target_kind(tmp_path: Path, kind: str) -> None:
    cache = write_cache(tmp_path / "cache", TARGETS[kind], pca_sketch())
    out = tmp_path / "run"
    last = train_student(
        config_for(kind), cache, out, resume=False, recipe_toml="", report=lambda _: None
    )
    assert all(math.isfinite(value) for value in last.values())
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [step["train/kl"] for step in steps if "train/kl" in step]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    temperatures = {step["schedule/temperature"] for step in steps if "train/kl" in step}
    if kind in TEMPERATURES:
        assert temperatures == {TEMPERATURES[kind][0]}


@pytest.mark.parametrize("kind", list(TARGETS))
def test_validation_kl_equals_the_float64_formula_for_every_target_kind(
    tmp_path: Path, kind: str
) -> None:
    """KL at T = 1 or at that of the samples, against float64 over the rows' own arrays."""
    cache = write_cache(tmp_path / "cache", TARGETS[kind])
    model, objective = objective_of(config_for(kind), cache)
    found = validate(model, objective, cache, num_rows=5, max_rows=5, batch_size=2)
    model.train(False)
    temperature = TEMPERATURES.get(kind, (1.0,))[0]
    kl, agreeing, count = 0.0, 0, 0
    for index in range(5):
        batch = read_batch(cache, "validation", [index], with_sketch=False)
        with torch.no_grad():
            hidden = model.hidden_states(batch.input_ids, batch.is_document_start)[0]
        logits = (hidden.double() @ objective.head_of(model).double().T).detach().numpy()
        of_row, agreeing_in_row = _kl_of_row(cache, index, logits, temperature)
        row = cache.read_row("validation", index)[1]
        of_row += _kl_by_moments(cache, row, hidden.double().numpy(), logits)
        kl += of_row
        agreeing += agreeing_in_row
        count += batch.num_scored
    assert found["validation/kl"] == pytest.approx(kl / count, rel=1e-4)
    assert found["validation/agreement"] == pytest.approx(agreeing / count)


@pytest.mark.parametrize("kind", list(TARGETS))
def test_a_validation_batch_without_scored_positions_is_passed_over(
    tmp_path: Path, kind: str
) -> None:
    spec = sample_spec(targets=TARGETS[kind])
    figures = []
    for name, whole_rows in {"some": {0: [0, 1]}, "all": {0: [0, 1, 2], 3: [0, 1]}}.items():
        cache = write_context_cache(tmp_path / name, spec, whole_rows=whole_rows)
        model, objective = objective_of(config_for(kind), cache)
        settings: dict[str, Any] = {"num_rows": 5, "max_rows": 5, "batch_size": 2}
        if name == "all":
            with pytest.raises(ValueError, match="no position has a label of its own document"):
                validate(model, objective, cache, **settings)
        else:
            figures.append(validate(model, objective, cache, **settings))
    assert all(math.isfinite(value) for value in figures[0].values())


def test_a_cache_with_nothing_to_learn_is_refused(tmp_path: Path) -> None:
    spec = sample_spec(targets=TARGETS["top_k"])
    cache = write_context_cache(tmp_path / "cache", spec, whole_rows={1: range(5)})
    with pytest.raises(ValueError, match="no position of its training rows is scored"):
        train_student(config_for("top_k"), cache, tmp_path / "run")


def _kl_of_row(
    cache: Cache, index: int, logits: np.ndarray, temperature: float
) -> tuple[float, int]:
    """ΣKL(p ‖ q) and positions of agreement, entry by entry."""
    row = cache.read_row("validation", index)[1]
    scaled = logits / temperature
    logq = scaled - np.log(np.exp(scaled).sum(1, keepdims=True))
    if row.coefficients is not None:
        return _dense_kl_of_row(cache, row, logits, logq)
    kept = row.kept
    kl, agreeing, begin, drawn = 0.0, 0, 0, 0
    for t in np.flatnonzero(row.scored()).tolist():
        end = begin + int(kept.num_ids[t])
        ids = kept.ids[begin:end]
        if kept.counts is not None:
            p, p_tail = kept.counts[begin:end] / kept.counts[begin:end].sum(), 0.0
        else:
            weights = np.exp(-kept.gaps[begin:end].astype(np.float64))
            tail = math.exp(kept.tail_log_mass[t, -1])
            p, p_tail = weights / (weights.sum() + tail), tail / (weights.sum() + tail)
        kl += float((p * (np.log(p) - logq[t, ids])).sum())
        q_tail = 1 - np.exp(logq[t, ids]).sum()
        if p_tail > 0:
            kl += p_tail * math.log(p_tail / q_tail)
        agreeing += int(logits[t].argmax() == ids[0])
        begin = end
        if kept.draws is not None:
            count = int(kept.draws.num_ids[t])
            shares, log_p = _drawn_shares(cache, kept, t, slice(drawn, drawn + count))
            log_r = logq[t, kept.draws.ids[drawn : drawn + count]] - math.log(q_tail)
            kl += p_tail * float((shares * (log_p - log_r)).sum())
            drawn += count
    return kl, agreeing


def _dense_kl_of_row(
    cache: Cache, row: Row, logits: np.ndarray, logq: np.ndarray
) -> tuple[float, int]:
    """ΣKL over all ids, from the row's states and the head in the cache."""
    assert row.coefficients is not None
    states = cache.tables.hidden_transform.states(row.coefficients).astype(np.float64)
    teacher = states @ teacher_head(cache).double().numpy().T
    if row.kept_ids is not None:
        _set_kept(teacher, row.kept_ids)
    logp = teacher - np.log(np.exp(teacher).sum(1, keepdims=True))
    scored = row.scored()
    p = np.exp(logp)
    kl = np.where(p > 0, p * (np.maximum(logp, -1e9) - logq), 0).sum(1)[scored].sum()
    agreeing = (logits.argmax(1) == teacher.argmax(1))[scored].sum()
    return float(kl), int(agreeing)


def _set_kept(teacher: np.ndarray, kept: KeptIds) -> None:
    """Let kept ids have their logits, and the others together the mass that they are known for."""
    begin = 0
    for t, count in enumerate(kept.num_ids.tolist()):
        ids, gaps = kept.ids[begin : begin + count], kept.gaps[begin : begin + count]
        begin += count
        if not count:
            continue
        teacher[t, ids] = -np.inf
        log_mass = float(kept.tail_log_mass[t, -1])
        teacher[t] += log_mass - np.log(np.exp(teacher[t]).sum())
        teacher[t, ids] = -gaps


def _kl_by_moments(cache: Cache, row: Row, hidden: np.ndarray, logits: np.ndarray) -> float:
    """What the tail's moments add to ΣKL at T = 1, entry by entry."""
    if cache.moment is None or row.moment_coefficients is None:
        return 0.0
    kept, center = row.kept, cache.moment.center.astype(np.float64)
    basis = cache.moment.basis.astype(np.float64)
    table = teacher_head(cache).double().numpy() @ basis.T - center[:-1]
    moments = cache.moment.moments(row.moment_coefficients)[:, -1].astype(np.float64)
    kl, begin, drawn = 0.0, 0, 0
    for t, num_kept in enumerate(kept.num_ids.tolist()):
        ids, gaps = kept.ids[begin : begin + num_kept], kept.gaps[begin : begin + num_kept]
        begin += num_kept
        if not num_kept or np.isneginf(kept.tail_log_mass[t, -1]):
            continue
        tail = math.exp(kept.tail_log_mass[t, -1])
        target = p_tail = tail / (np.exp(-gaps.astype(np.float64)).sum() + tail)
        r = np.exp(logits[t] - logits[t].max())
        r[ids] = 0
        r /= r.sum()
        entropy = -(r[r > 0] * np.log(r[r > 0])).sum()
        known = moments[t, :-1].copy()
        if kept.draws is not None:
            of_position = slice(drawn, drawn + int(kept.draws.num_ids[t]))
            drawn = of_position.stop
            shares, log_p = _drawn_shares(cache, kept, t, of_position)
            weights = p_tail * shares
            target -= weights.sum()
            known -= weights @ table[kept.draws.ids[of_position]]
            kl -= (weights * (log_p + center[-1])).sum()
        correction = known - target * (r @ table)
        kl += target * (entropy - center[-1]) - moments[t, -1]
        kl -= (basis @ hidden[t]) @ correction
    return float(kl)


def _drawn_shares(
    cache: Cache, kept: KeptIds, t: int, drawn: slice
) -> tuple[np.ndarray, np.ndarray]:
    """(c/m)·p(j)/r(j) of the ids drawn at a position, r being what they are drawn from, and their
    log-probabilities within the tail, at T = 1."""
    targets, draws = cache.spec.targets, kept.draws
    assert draws is not None
    s = targets.sampling.inverse_temperature
    gaps = draws.gaps[drawn].astype(np.float64)
    shares = draws.counts[drawn] / targets.sampling.num_draws
    mass_at_s = kept.tail_log_mass[t, targets.inverse_temperatures.index(s)]
    log_p = -gaps - kept.tail_log_mass[t, -1]
    return shares * np.exp(log_p + gaps * s + mass_at_s), log_p


def test_moving_a_batch_moves_all_its_tensors(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", TARGETS["top_k+sampled with moment"], pca_sketch())
    batch = read_batch(cache, "train", [0], with_sketch=True).to(torch.device("meta"))
    places = {name: tensor.device.type for name, tensor in tensors_of(batch)}
    assert places.pop("is_document_start") == "cpu"  # the student looks at it there
    num_fields = sum(len(fields(part)) for part in (Batch, IdTargets, SampledIds))
    # Neither that one nor the two that are no tensors, targets and their samples.
    assert len(places) == num_fields - 3
    assert set(places.values()) == {"meta"}
