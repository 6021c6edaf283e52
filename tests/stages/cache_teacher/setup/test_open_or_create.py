"""Who begins a cache, and what others then find: the table of ids, the principal components."""

import weakref
from typing import Any

import pytest

from cache_format.errors import MissingFileError, SpecMismatchError
from cache_format.metadata.principal_components import Projection
from cache_format.writer import CacheWriter
from stages.cache_teacher.config import ALL_UNITS
from stages.cache_teacher.engine.ray_engine import RayEngine
from stages.cache_teacher.setup import pca
from stages.cache_teacher.teacher.teacher import Teacher
from stages.cache_teacher.worker_share import WorkerShare
from tests.support.sample_cache import contents
from tests.support.stage_one_runs import TEXTS, Bench, shard_bytes
from tests.support.tiny import write_fineweb_parquet

PCA: dict[str, Any] = {"hidden_projection": "pca"}


class Fits:
    """Counts the fits. One may give another matrix, as two machines do in their last bits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, other: int | None = None) -> None:
        """Fit number ``other``, from 1, has its signs turned: as good a matrix, and another one."""
        self.num = 0
        fit = pca.principal_components

        def counted(*arguments: Any) -> Projection:
            self.num += 1
            found: Projection = fit(*arguments)
            return -found if self.num == other else found

        monkeypatch.setattr(
            "stages.cache_teacher.setup.open_or_create.principal_components", counted
        )


def test_principal_components_are_fitted_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bench.run("whole", **PCA)
    fits = Fits(monkeypatch)
    bench.run(num_tokens=700, **PCA)
    assert fits.num == 1
    assert bench.run(**PCA) == whole
    assert bench.run(**PCA) == whole  # nothing to do
    assert fits.num == 1
    assert contents(bench.root / "cache") == contents(bench.root / "whole")
    cache = bench.open()
    assert cache.projection is not None
    assert cache.projection.shape == (32, 8)


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


def test_lost_principal_components_are_fitted_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run(**PCA)
    before = contents(bench.root / "cache")
    (bench.root / "cache/projection.bin").unlink()
    fits = Fits(monkeypatch)
    bench.run(**PCA)
    assert fits.num == 1
    assert contents(bench.root / "cache") == before


def test_principal_components_that_cannot_be_refitted_are_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run(**PCA)
    (bench.root / "cache/projection.bin").unlink()
    Fits(monkeypatch, other=1)
    with pytest.raises(MissingFileError, match=r"projection\.bin"):
        bench.run(**PCA)


def test_two_workers_may_create_the_cache_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is overtaken between its fit and its first file."""
    whole = bench.run("whole", **PCA)
    fits = Fits(monkeypatch, other=1)
    create = CacheWriter.create_or_open
    num_calls = 0

    def overtaken(*arguments: Any) -> CacheWriter:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 1:
            bench.run(units=WorkerShare(worker=0, num_workers=2), **PCA)
        return create(*arguments)

    monkeypatch.setattr(CacheWriter, "create_or_open", overtaken)
    manifest = bench.run(units=WorkerShare(worker=1, num_workers=2), **PCA)
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
