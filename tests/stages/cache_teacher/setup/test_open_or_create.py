"""Who begins a cache, and what others then find: the table of ids, and what was fitted."""

import weakref
from dataclasses import replace
from typing import Any

import pytest

from cache_format.errors import MissingFileError, SpecMismatchError
from cache_format.metadata.spec_parts.targets import CodedStates, TailMoment
from cache_format.tables.hidden_transform import HiddenTransform
from cache_format.tables.principal_components import Projection
from cache_format.tables.tail_moment import MomentTransform
from cache_format.writer import CacheWriter
from stages.cache_teacher.config import ALL_UNITS
from stages.cache_teacher.engine.ray_engine import RayEngine
from stages.cache_teacher.setup import hidden_fit, moment_fit, pca
from stages.cache_teacher.teacher.teacher import Teacher
from stages.cache_teacher.worker_share import WorkerShare
from tests.support.sample_cache import contents
from tests.support.stage_one_runs import TEXTS, Bench, shard_bytes
from tests.support.tiny import write_fineweb_parquet

PCA: dict[str, Any] = {"hidden_projection": "pca"}
SETTINGS: dict[str, dict[str, Any]] = {
    "pca": PCA,
    "hidden": {"targets": "hidden"},
    "moment": {"tail_moment_dim": 5},
    "moment beside draws": {"targets": "top_k+sampled", "num_samples": 6, "tail_moment_dim": 5},
}
FILES = {
    "pca": "projection.bin",
    "hidden": "transform.bin",
    "moment": "tail_moment.bin",
    "moment beside draws": "tail_moment.bin",
}


@pytest.fixture(params=FILES)
def kind(request: pytest.FixtureRequest) -> str:
    """What is fitted to the first unit."""
    name: str = request.param
    return name


@pytest.fixture
def settings(kind: str) -> dict[str, Any]:
    return SETTINGS[kind]


class Fits:
    """Counts the fits. One may give another matrix, as two machines do in their last bits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, other: int | None = None) -> None:
        """Fit number ``other``, from 1, has its signs turned: as good a matrix, and another one."""
        self.num, self._other = 0, other
        where = "stages.cache_teacher.setup.first_unit"
        monkeypatch.setattr(f"{where}.principal_components", self._principal_components)
        monkeypatch.setattr(f"{where}.fit_transform", self._transform)
        monkeypatch.setattr(f"{where}.fit_moment", self._moment)

    def _principal_components(self, *arguments: Any) -> Projection:
        self.num += 1
        found: Projection = pca.principal_components(*arguments)
        return -found if self.num == self._other else found

    def _transform(self, *arguments: Any) -> tuple[CodedStates, HiddenTransform]:
        self.num += 1
        hidden, found = hidden_fit.fit_transform(*arguments)
        if self.num != self._other:
            return hidden, found
        turned = replace(found, analysis=-found.analysis, synthesis=-found.synthesis)
        return replace(hidden, transform_sha256=turned.sha256), turned

    def _moment(self, *arguments: Any) -> tuple[TailMoment, MomentTransform]:
        self.num += 1
        part, found = moment_fit.fit_moment(*arguments)
        if self.num != self._other:
            return part, found
        turned = replace(found, center=-found.center)
        return replace(part, transform_sha256=turned.sha256), turned


def test_a_new_cache_is_fitted_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    whole = bench.run("whole", **settings)
    fits = Fits(monkeypatch)
    bench.run(num_tokens=700, **settings)
    assert fits.num == 1
    assert bench.run(**settings) == whole
    assert bench.run(**settings) == whole  # nothing to do
    assert fits.num == 1
    assert contents(bench.root / "cache") == contents(bench.root / "whole")


def test_principal_components_have_the_shape_of_the_sketch(bench: Bench) -> None:
    bench.run(**PCA)
    projection = bench.open().projection
    assert projection is not None
    assert projection.shape == (32, 8)


def test_the_teacher_is_not_kept_in_memory_where_a_cluster_makes_the_units(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Teacher]] = []

    def loaded(*arguments: Any) -> Teacher:
        teacher = Teacher(*arguments)
        alive.append(weakref.ref(teacher))
        return teacher

    def make_units(*_: Any) -> None:
        assert [teacher() for teacher in alive] == [None]
        raise InterruptedError("the cluster has begun")

    monkeypatch.setattr("stages.cache_teacher.teacher.lazy_teacher.Teacher", loaded)
    monkeypatch.setattr(RayEngine, "make_units", make_units)
    with pytest.raises(InterruptedError, match="the cluster has begun"):
        bench.run(engine=RayEngine(), **PCA)


def test_a_lost_fit_is_made_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, kind: str, settings: dict[str, Any]
) -> None:
    bench.run(**settings)
    before = contents(bench.root / "cache")
    (bench.root / "cache" / FILES[kind]).unlink()
    fits = Fits(monkeypatch)
    bench.run(**settings)
    assert fits.num == 1
    assert contents(bench.root / "cache") == before


def test_a_lost_fit_that_cannot_be_made_again_is_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, kind: str, settings: dict[str, Any]
) -> None:
    bench.run(**settings)
    (bench.root / "cache" / FILES[kind]).unlink()
    Fits(monkeypatch, other=1)
    with pytest.raises(MissingFileError, match=FILES[kind]):
        bench.run(**settings)


def test_two_workers_may_create_the_cache_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """The second is overtaken between its fit and its first file."""
    whole = bench.run("whole", **settings)
    fits = Fits(monkeypatch, other=1)
    create = CacheWriter.create_or_open
    num_calls = 0

    def overtaken(*arguments: Any) -> CacheWriter:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 1:
            bench.run(units=WorkerShare(worker=0, num_workers=2), **settings)
        return create(*arguments)

    monkeypatch.setattr(CacheWriter, "create_or_open", overtaken)
    manifest = bench.run(units=WorkerShare(worker=1, num_workers=2), **settings)
    assert fits.num == 2  # each its own, of which the first to write counts
    assert manifest == whole
    assert shard_bytes(bench.root / "cache") == shard_bytes(bench.root / "whole")


def test_a_run_overtaken_by_another_recipe_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = CacheWriter.create_or_open
    num_calls = 0

    def overtaken(*arguments: Any) -> CacheWriter:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 1:
            bench.run(num_tokens=1, seed=1, units=ALL_UNITS, **PCA)
        return create(*arguments)

    monkeypatch.setattr(CacheWriter, "create_or_open", overtaken)
    with pytest.raises(SpecMismatchError, match="seed"):
        bench.run(**PCA)


def test_principal_components_need_rows_in_the_first_unit(bench: Bench) -> None:
    bench.corpus = write_fineweb_parquet(bench.root / "short.parquet", ["a", *TEXTS])
    with pytest.raises(ValueError, match="principal components need at least 8 positions"):
        bench.run(hidden_projection="pca", documents_per_unit=1)
    assert not (bench.root / "cache").exists()
