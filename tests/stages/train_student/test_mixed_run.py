"""One student of several caches: order, validation, resume and refusals of a whole run."""

import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch

import cache_format
from stages.train_student.checkpoints.run_record import read_record
from stages.train_student.data import loader
from stages.train_student.data.batch import read_mixed_batch
from stages.train_student.data.mixed_sampler import located
from stages.train_student.data.mixture import mix
from stages.train_student.run import train_student
from stages.train_student.tracking.run_progress import TrainProgress
from stages.train_student.trainer.stopping import StoppedError, StopRequest
from tests.support import tiny
from tests.support.hybrid_runs import align_config, hybrid_cache
from tests.support.sample_cache import reseal
from tests.support.train_configs import tiny_train_config
from tests.support.train_runs import metrics, weights
from tests.support.train_runs import run as run_on_one

WEIGHTS = (0.4, 0.6)


@pytest.fixture(scope="module")
def caches(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two caches of one teacher, "cache" and "math", of other texts."""
    math = tmp_path_factory.mktemp("math") / "math"
    texts = tiny.tiny_texts(40, seed=5)
    return [tiny_cache, tiny.cache_texts(tiny_cache.parent / "teacher", math, texts)]


def run(
    caches: Sequence[Path],
    out: Path,
    weights: Sequence[float] | None = WEIGHTS,
    *,
    resume: bool = False,
    report: Callable[[TrainProgress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    **changes: Any,
) -> dict[str, float]:
    return train_student(
        tiny_train_config(**changes),
        mix([cache_format.open(cache) for cache in caches], weights),
        out,
        resume=resume,
        recipe_toml="# tiny\n",
        report=report,
        stop=StopRequest(is_made=stop),
    )


@pytest.fixture(scope="module")
def whole(caches: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run(caches, out)
    return out


@pytest.fixture
def stopped(caches: list[Path], tmp_path: Path) -> Path:
    """A run that was stopped after step 5, three steps into its second save."""
    out, last = tmp_path / "run", 0

    def report(progress: TrainProgress) -> None:
        nonlocal last
        last = progress.step

    with pytest.raises(StoppedError):
        run(caches, out, report=report, stop=lambda: last == 5)
    return out


def assert_same(out: Path, expected: Path) -> None:
    theirs = weights(expected)
    for name, tensor in weights(out).items():
        assert torch.equal(tensor, theirs[name]), name
    assert metrics(out) == metrics(expected)


def train_and_die(caches: list[Path], out: Path, step: int) -> None:
    def report(progress: TrainProgress) -> None:
        if progress.event == "step" and progress.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    run(caches, out, resume=True, report=report)


@pytest.mark.parametrize("steps", [(1,), (5, 8)])
def test_a_killed_run_of_several_caches_continues_bitwise(
    fork_server: ForkServerContext,
    whole: Path,
    caches: list[Path],
    tmp_path: Path,
    steps: tuple[int, ...],
) -> None:
    for step in steps:
        process = fork_server.Process(target=train_and_die, args=(caches, tmp_path / "run", step))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    run(caches, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", whole)


def test_a_stopped_run_continues_bitwise_whatever_the_order_of_its_caches(
    whole: Path, stopped: Path, caches: list[Path]
) -> None:
    run(caches[::-1], stopped, WEIGHTS[::-1], resume=True)
    assert_same(stopped, whole)


def test_a_run_reads_the_rows_of_each_cache_by_its_weight(
    caches: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[int, int]] = []

    def read(mixture: Any, indices: Sequence[int], **options: Any) -> Any:
        drawn.extend(located(indices, 2))
        return read_mixed_batch(mixture, indices, **options)

    monkeypatch.setattr(loader, "read_mixed_batch", read)
    run(caches, tmp_path / "run", (0.75, 0.25), max_steps=8)
    mixture = mix([cache_format.open(cache) for cache in caches])
    counts = Counter(source for source, _ in drawn)
    by_name = {label: counts[number] for number, label in enumerate(mixture.labels())}
    assert by_name == {"cache": 24, "math": 8}


def assert_parts_are_those_of_each_alone(
    out: Path, caches: Sequence[Path], scratch: Path, **changes: Any
) -> None:
    """Before the first step, where the students are the same."""
    first = next(row for row in metrics(out) if "validation/loss" in row)
    for cache in caches:
        alone_out = scratch / f"alone-{cache.name}"
        stop = after_validation(alone_out)
        with pytest.raises(StoppedError):
            run_on_one(tiny_train_config(**changes), cache, alone_out, stop=stop)
        alone = next(row for row in metrics(alone_out) if "validation/loss" in row)
        own = {
            name.replace(f"{cache.name}/", ""): value
            for name, value in first.items()
            if f"/{cache.name}/" in name and not name.endswith("/positions")
        }
        assert own == {n: v for n, v in alone.items() if n.startswith("validation/")}


def after_validation(out: Path) -> Callable[[], bool]:
    """A request to stop once there are figures in ``out``."""
    return lambda: (out / "metrics.jsonl").exists() and bool(metrics(out))


class TestValidation:
    def test_the_parts_add_up_to_the_whole(self, whole: Path) -> None:
        validations = [row for row in metrics(whole) if "validation/loss" in row]
        assert len(validations) == 4
        for row in validations:
            numbers = {label: row[f"validation/{label}/positions"] for label in ("cache", "math")}
            for name in ("loss", "kl", "agreement", "accuracy", "teacher_loss"):
                parts = {label: row[f"validation/{label}/{name}"] for label in numbers}
                total = sum(numbers[label] * parts[label] for label in numbers)
                expected = pytest.approx(total / sum(numbers.values()), rel=1e-12)
                assert row[f"validation/{name}"] == expected
                assert parts["cache"] != parts["math"], name

    def test_each_part_is_what_a_run_of_that_cache_alone_would_have(
        self, whole: Path, caches: list[Path], tmp_path: Path
    ) -> None:
        assert_parts_are_those_of_each_alone(whole, caches, tmp_path)

    def test_a_cache_without_scored_validation_is_named(
        self, caches: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from stages.train_student.evaluation import validation

        batches = validation.batches_by_corpus

        def none_of_math(cache: Any, *extent: int) -> Any:
            return {None: ()} if cache.path.name == "math" else batches(cache, *extent)

        monkeypatch.setattr(validation, "batches_by_corpus", none_of_math)
        with pytest.raises(ValueError, match="validation of math: no position has a label"):
            run(caches, tmp_path / "run")


class TestRecord:
    def test_the_run_records_all_caches(self, whole: Path, caches: list[Path]) -> None:
        record = read_record(whole)
        opened = [cache_format.open(cache) for cache in caches]
        assert record.caches is not None
        assert {cache.label: cache.location for cache in record.caches} == {
            cache.name: str(cache) for cache in caches
        }
        recorded = record.identity["caches"]
        assert {key: own["weight"] for key, own in recorded.items()} == {
            cache.cache_id: weight for cache, weight in zip(opened, WEIGHTS, strict=True)
        }
        assert record.identity["num_train_rows"] == sum(c.num_rows("train") for c in opened)
        assert record.rows_of(opened[1].cache_id).train == opened[1].num_rows("train")

    def test_the_model_names_all_caches(self, whole: Path, caches: list[Path]) -> None:
        card = (whole / "model/README.md").read_text()
        config = json.loads((whole / "model/config.json").read_text())
        ids = [cache_format.open(cache).cache_id for cache in caches]
        for cache_id, weight in zip(ids, WEIGHTS, strict=True):
            assert f"- cache: `{cache_id}`, targets top_k, weight {weight:g}\n" in card
        assert card.count("- corpus: ") == 2
        assert config["cache_ids"] == sorted(ids)
        assert config["cache_id"] == read_record(whole).identity["cache_id"]

    def test_a_run_of_one_cache_records_what_it_always_did(
        self, tiny_cache: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(StoppedError):
            run([tiny_cache], tmp_path / "run", (0.4,), stop=lambda: True)
        recorded = json.loads((tmp_path / "run/run.json").read_text())
        assert "caches" not in recorded
        assert {key for key in recorded["identity"] if key.startswith(("cache", "num_", "sh"))} == {
            *("cache_id", "num_train_rows", "num_train_shards", "num_train_epochs"),
            *("num_validation_rows", "num_validation_shards", "shards_sha256", "shuffle_shards"),
        }

    def test_a_moved_cache_keeps_its_name_in_the_metrics(
        self, stopped: Path, whole: Path, caches: list[Path], tmp_path: Path
    ) -> None:
        moved = Path(shutil.copytree(caches[1], tmp_path / "moved"))
        run([caches[0], moved], stopped, resume=True)
        assert metrics(stopped) == metrics(whole)
        assert str(moved) in read_record(stopped).cache_locations


class TestRefusals:
    def test_other_weights_are_refused_by_name(self, stopped: Path, caches: list[Path]) -> None:
        with pytest.raises(ValueError, match=r"the weight of .*math was 0.6 and is 0.5[.;]"):
            run(caches, stopped, (0.5, 0.5), resume=True)
        with pytest.raises(ValueError, match=r"math was 0.6 and is its number of rows[.;]"):
            run(caches, stopped, None, resume=True)

    def test_fewer_or_other_caches_are_refused_by_name(
        self, stopped: Path, caches: list[Path], tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match=r"it learns from .*math.*, not from .*cache\."):
            run(caches[:1], stopped, None, resume=True)
        texts = tiny.tiny_texts(30, seed=6)
        other = tiny.cache_texts(caches[0].parent / "teacher", tmp_path / "code", texts)
        lost = cache_format.open(caches[1]).cache_id[:12]
        with pytest.raises(ValueError, match=rf"{lost}… is not given; .*code is not one of them\."):
            run([caches[0], other], stopped, resume=True)

    def test_a_run_of_one_cache_does_not_go_on_with_several(
        self, tiny_cache: Path, caches: list[Path], tmp_path: Path
    ) -> None:
        with pytest.raises(StoppedError):
            run([tiny_cache], tmp_path / "run", None, stop=lambda: True)
        with pytest.raises(ValueError, match=r"it learns from .*cache, not from .*math"):
            run(caches, tmp_path / "run", resume=True)

    def test_a_checkpoint_of_other_weights_is_refused(
        self, stopped: Path, caches: list[Path]
    ) -> None:
        math = cache_format.open(caches[1]).cache_id

        def change(fields: dict[str, Any]) -> None:
            fields["identity"]["caches"][math]["weight"] = 0.5

        reseal(stopped / "checkpoints/step-0000005/state.json", change)
        with pytest.raises(ValueError, match=r"step-0000005: a checkpoint of another run: .*0.5"):
            run(caches, stopped, resume=True)

    def test_caches_of_another_teacher_are_refused_before_anything_is_written(
        self, caches: list[Path], tmp_path: Path
    ) -> None:
        teacher = tiny.save_tiny_teacher(tmp_path / "teacher", seed=1)
        other = tiny.cache_texts(teacher, tmp_path / "other", tiny.tiny_texts(40))
        with pytest.raises(ValueError, match=r"cannot learn from both: teacher.weights_sha256 is"):
            run([caches[0], other], tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_one_cache_too_small_is_named(self, caches: list[Path], tmp_path: Path) -> None:
        texts = tiny.tiny_texts(8, seed=6)  # one unit, which is validation
        small = tiny.cache_texts(caches[0].parent / "teacher", tmp_path / "small", texts)
        with pytest.raises(ValueError, match="small: no position of its training rows is scored"):
            run([caches[0], small], tmp_path / "run")


def test_a_run_keeps_to_its_rows_when_one_of_its_caches_is_extended(
    caches: list[Path], tmp_path: Path
) -> None:
    """Also where rows are drawn by their number."""
    teacher, texts = caches[0].parent / "teacher", tiny.tiny_texts(60, seed=7)
    budget = {"num_tokens": 700}
    grows = tiny.cache_texts(teacher, tmp_path / "grows", texts, **budget)
    before = cache_format.open(grows).num_rows("train")
    both = [caches[0], grows]
    run(both, tmp_path / "whole", None)
    with pytest.raises(StoppedError):
        run(both, tmp_path / "run", None, stop=after_validation(tmp_path / "run"))
    tiny.cache_texts(teacher, grows, texts)
    assert cache_format.open(grows).num_rows("train") > before
    run(both, tmp_path / "run", None, resume=True)
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_an_alignment_takes_its_teacher_from_the_cache_that_holds_it(tmp_path: Path) -> None:
    bare = hybrid_cache(tmp_path, keep_teacher_weights=False)
    texts = tiny.tiny_texts(40, seed=5)
    options = {"hidden_projection": "none", "keep_teacher_weights": True}
    whole = tiny.cache_texts(tmp_path / "teacher", tmp_path / "whole", texts, **options)
    mixture = mix([cache_format.open(bare), cache_format.open(whole)], WEIGHTS)
    assert mixture.reference.path == whole
    found = train_student(align_config(max_steps=2), mixture, tmp_path / "run")
    assert found["validation/alignment"] > 0
    numbers = {label: found[f"validation/{label}/alignment"] for label in ("bare", "whole")}
    assert min(numbers.values()) < found["validation/alignment"] < max(numbers.values())


@pytest.mark.parametrize("targets", ["hidden", "top_k+hidden"])
def test_caches_with_transforms_of_their_own_train_one_student(
    tiny_cache: Path, tmp_path: Path, targets: str
) -> None:
    teacher = tiny_cache.parent / "teacher"
    both = [
        tiny.cache_texts(teacher, tmp_path / name, tiny.tiny_texts(40, seed=seed), targets=targets)
        for seed, name in enumerate(("web", "math"))
    ]
    opened = [cache_format.open(cache) for cache in both]
    assert opened[0].spec.targets.states.transform_sha256 != (
        opened[1].spec.targets.states.transform_sha256
    )
    run(both, tmp_path / "run", max_steps=2)
    assert_parts_are_those_of_each_alone(tmp_path / "run", both, tmp_path)
