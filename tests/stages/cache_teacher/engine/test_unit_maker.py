"""How threads make units: overlapping, bounded, to the same bytes; ended by the first failure."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

import cache_format
from cache_format.metadata.manifest import Manifest
from cache_format.writer import CacheWriter
from stages.cache_teacher.corpus.unit_reader import UnitReader
from stages.cache_teacher.engine import unit_maker
from stages.cache_teacher.targets.target_maker import TargetMaker
from stages.cache_teacher.teacher.forward import PendingRows, TeacherStep
from stages.cache_teacher.worker_share import WorkerShare
from tests.support.stage_one_runs import Bench, shard_bytes

Call = Callable[..., Any]


class Steps:
    """Calls ``hook`` with a step's name and unit before it is taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, hook: Callable[[str, int], None]) -> None:
        self._patch, self._hook = monkeypatch, hook
        self._wrap(UnitReader, "read", lambda unit: unit)
        self._wrap(TeacherStep, "launch", lambda batch, unit, first_row: unit)
        self._wrap(PendingRows, "rows", lambda: -1)
        self._wrap(CacheWriter, "_publish", lambda entry, shard: entry.unit)

    def _wrap(self, owner: type, name: str, unit_of: Call) -> None:
        original = getattr(owner, name)

        def wrapped(this: Any, *arguments: Any) -> Any:
            self._hook(name.strip("_"), unit_of(*arguments))
            return original(this, *arguments)

        self._patch.setattr(owner, name, wrapped)


def finished(bench: Bench, out: str = "cache") -> Manifest:
    return cache_format.open(bench.root / out, allow_incomplete=True).manifest


def require_no_threads() -> None:
    names = [thread.name for thread in threading.enumerate()]
    assert [name for name in names if name.startswith(("unit-", "encode"))] == []


def test_the_bytes_do_not_depend_on_thread_timing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = bench.run("whole")
    rng = random.Random(0)
    Steps(monkeypatch, lambda name, unit: time.sleep(rng.choice([0, 0.001, 0.01])))
    for out in ("a", "b", "c"):
        assert bench.run(out) == expected
        assert shard_bytes(bench.root / out) == shard_bytes(bench.root / "whole")
    require_no_threads()


def test_reading_computing_and_writing_of_units_overlap(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: dict[tuple[str, int], threading.Event] = {
        (name, unit): threading.Event()
        for name in ("read", "launch", "publish")
        for unit in range(8)
    }
    met = []

    def hook(name: str, unit: int) -> None:
        if name == "rows":
            return
        begun[name, unit].set()
        if (name, unit) == ("publish", 0):
            met.append(begun["launch", 1].wait(60) and begun["read", 2].wait(60))

    Steps(monkeypatch, hook)
    bench.run()
    assert met == [True]


def test_the_number_of_units_in_flight_is_bounded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = threading.Lock()
    now = {"units": 0, "launched": 0}
    most = dict(now)

    def change(name: str, by: int) -> None:
        with lock:
            now[name] += by
            most[name] = max(most[name], now[name])

    def hook(name: str, unit: int) -> None:
        if name == "read":
            change("units", 1)
        elif name == "launch":
            change("launched", 1)
        elif name == "rows":
            time.sleep(0.005)  # a slow copy
            change("launched", -1)
        else:
            time.sleep(0.1)  # a slow disk
            change("units", -1)

    Steps(monkeypatch, hook)
    monkeypatch.setattr(PendingRows, "is_done", False)  # as on a GPU
    bench.run(rows_per_forward=1)
    assert now == {"units": 0, "launched": 0}
    assert most == {"units": unit_maker.UNITS_IN_FLIGHT, "launched": 3}


@pytest.mark.parametrize("name", ["read", "launch", "rows", "publish"])
def test_a_failure_anywhere_ends_the_run_with_its_cause(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    whole = bench.run("whole")
    calls: list[str] = []

    def hook(called: str, unit: int) -> None:
        calls.append(called)
        if called == name and (unit == 3 or (name == "rows" and calls.count("rows") == 14)):
            raise OSError(f"{name} has failed")

    with monkeypatch.context() as patch:
        Steps(patch, hook)
        with pytest.raises(OSError, match=f"{name} has failed"):
            bench.run()
    require_no_threads()
    shards = finished(bench).shards
    assert 0 < len(shards) < 8
    assert all(entry in whole.shards for entry in shards)
    assert bench.run() == whole
    assert shard_bytes(bench.root / "cache") == shard_bytes(bench.root / "whole")


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C is heard, also where the tests run in the background of a shell that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_the_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bench.run("whole")

    def hook(name: str, unit: int) -> None:
        if (name, unit) == ("launch", 4):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)  # the main thread hears of it

    with monkeypatch.context() as patch:
        Steps(patch, hook)
        with pytest.raises(KeyboardInterrupt):
            bench.run()
    require_no_threads()
    shards = finished(bench).shards
    assert len(shards) < 8
    assert all(entry in whole.shards for entry in shards)
    assert bench.run() == whole


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_abandons_a_forward_pass(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow a model is: nothing more of it is run after the block that it is in."""
    stopped, num_blocks = threading.Event(), 0
    forward, stop = Qwen2DecoderLayer.forward, UnitReader.stop

    def slow(*arguments: Any, **settings: Any) -> Any:
        nonlocal num_blocks
        if threading.current_thread() is not threading.main_thread():
            num_blocks += 1
            if num_blocks == 3:  # the first of two, in the second forward pass
                os.kill(os.getpid(), signal.SIGINT)
                assert stopped.wait(60)
        return forward(*arguments, **settings)

    def stopping(reader: UnitReader) -> None:
        stop(reader)
        stopped.set()

    monkeypatch.setattr(Qwen2DecoderLayer, "forward", slow)
    monkeypatch.setattr(UnitReader, "stop", stopping)
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    assert num_blocks == 3
    require_no_threads()
    assert finished(bench).shards == ()


def test_compilation_happens_on_the_main_thread(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[bool] = []

    def compile_now(maker: TargetMaker, num_draws: int) -> None:
        compiled.append(threading.current_thread() is threading.main_thread())

    monkeypatch.setattr(TargetMaker, "compile", compile_now)
    Steps(monkeypatch, lambda name, unit: compiled.append(True) if name == "launch" else None)
    bench.run(num_tokens=1)
    assert compiled[0]
    assert len(compiled) > 1


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_the_counting_of_other_workers_units(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worker 0 of 40, for whom unit 40 is the next, counts those between: the budget is near."""
    read: list[int] = []
    stopped = threading.Event()

    def stop(reader: UnitReader) -> None:
        original(reader)
        stopped.set()

    def hook(name: str, unit: int) -> None:
        if name == "read":
            read.append(unit)
            if unit == 5:
                os.kill(os.getpid(), signal.SIGINT)
                stopped.wait(10)  # the main thread hears of it

    original = UnitReader.stop
    share = WorkerShare(worker=0, num_workers=40)
    with monkeypatch.context() as patch:
        patch.setattr(UnitReader, "stop", stop)
        Steps(patch, hook)
        with pytest.raises(KeyboardInterrupt):
            bench.run(units=share, documents_per_unit=1, num_tokens=1000)
    require_no_threads()
    assert 5 in read
    assert max(unit for unit in read if unit < 40) < 10


def test_units_finished_on_the_device_are_published_after_a_failure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def hook(name: str, unit: int) -> None:
        if (name, unit) == ("publish", 0):
            assert failed.wait(60)
        if (name, unit) == ("launch", 1):
            failed.set()
            raise ValueError("damaged")

    Steps(monkeypatch, hook)
    with pytest.raises(ValueError, match="damaged"):
        bench.run()
    assert [entry.unit for entry in finished(bench).shards] == [0]


def test_a_unit_maker_makes_one_unit_without_an_engine(bench: Bench) -> None:
    """What every engine calls, without any engine."""
    from stages.cache_teacher.config import ALL_UNITS
    from stages.cache_teacher.corpus.corpora import resolve_corpora
    from stages.cache_teacher.engine.unit_maker import Job, UnitMaker
    from stages.cache_teacher.reporting.progress import Progress
    from stages.cache_teacher.teacher.lazy_teacher import LazyTeacher
    from stages.cache_teacher.teacher.teacher_files import resolve_teacher
    from stages.compute.device import choose_device
    from tests.support.tiny import tiny_cache_config

    whole = bench.run("whole")
    cache = bench.open("whole")
    config = tiny_cache_config(bench.teacher, bench.corpus)
    progress = Progress(config.num_tokens, ALL_UNITS, lambda _: None)
    teacher = LazyTeacher(resolve_teacher(config), choose_device("cpu"), progress)
    reader = UnitReader(resolve_corpora(config), teacher.source, cache.spec)
    writer = CacheWriter.create_or_open(bench.root / "alone", cache.spec, cache.shared)
    job = Job(config=config, spec=cache.spec, shared=cache.shared, teacher=teacher)
    maker = UnitMaker(job, reader, writer, progress)
    assert maker.make(5) == whole.shards[5]
    assert maker.make(5) == whole.shards[5]
    assert maker.make(8) is None
    maker.close()
