"""The loader: its tensors are the cache's rows, in the order asked for."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch

import cache_format
from cache_format.errors import CacheError
from cache_format.reader import Cache
from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.batch import Batch, read_batch
from stages.train_student.data.loader import Loader, Step, _in_use, row_order
from stages.train_student.data.sampler import WHOLE, RankSlice
from tests.support.batches import ids_of, tensors_of

CPU = torch.device("cpu")


def test_batches_hold_the_rows_of_the_cache(tiny_cache: Path) -> None:
    cache = cache_format.open(tiny_cache)
    batch = read_batch(cache, "train", [3, 0, 5], with_sketch=True)
    targets = ids_of(batch)
    for place, index in enumerate((3, 0, 5)):
        _, row = cache.read_row("train", index)
        assert batch.input_ids[place].tolist() == row.token_ids[:-1].tolist()
        is_scored = batch.labels[place] >= 0
        assert is_scored.tolist() == row.scored().tolist()
        assert batch.labels[place][is_scored].tolist() == row.token_ids[1:][row.scored()].tolist()
        starts = batch.is_document_start[place].nonzero()[:, 0].tolist()
        assert starts == [0, *(s for s in row.document_starts.tolist() if 0 < s < 32)]
        position = int(is_scored.nonzero()[4, 0])
        begin = int(row.kept.num_ids[:position].sum())
        kept = int(row.kept.num_ids[position])
        assert targets.kept_ids[place, position, :kept].tolist() == (
            row.kept.ids[begin : begin + kept].tolist()
        )
        assert torch.isinf(targets.logit_gaps[place, position, kept:]).all()
        assert (
            targets.logit_gaps[place, position, :kept].tolist()
            == row.kept.gaps[begin : begin + kept].tolist()
        )


@pytest.mark.parametrize("num_threads", [1, 3])
def test_loader_threads_do_not_change_the_batches(tiny_cache: Path, num_threads: int) -> None:
    cache = cache_format.open(tiny_cache)
    config = TrainStudentConfig(seed=5, batch_size=2, gradient_accumulation_steps=2)
    order = row_order(cache, config, cache.num_rows("train"))
    with Loader(cache, order, CPU, num_threads=num_threads, with_sketch=True) as loader:
        steps = list(loader.steps(2, 9))
    for number, step in zip(range(2, 9), steps, strict=True):
        rows_AB = order.rows_of_step(number).reshape(2, 2)
        for rows_B, batch in zip(rows_AB, step, strict=True):
            expected = read_batch(cache, "train", rows_B.tolist(), with_sketch=True)
            assert hashes(batch) == hashes(expected)


def test_a_process_reads_its_own_micro_batches(tiny_cache: Path) -> None:
    """What is read by 1, 2, 3 or 4 processes is the same, to the last bit."""
    cache = cache_format.open(tiny_cache)
    config = TrainStudentConfig(batch_size=2, gradient_accumulation_steps=4)
    order = row_order(cache, config, cache.num_rows("train"))

    def read(part: RankSlice) -> list[Step]:
        with Loader(cache, order, CPU, part, num_threads=2, with_sketch=True) as loader:
            return list(loader.steps(0, 3))

    whole = read(WHOLE)
    for num_ranks in (2, 3, 4):
        for rank in range(num_ranks):
            part = RankSlice(rank, num_ranks)
            for ours, all_of_it in zip(read(part), whole, strict=True):
                expected = [all_of_it[number] for number in part.micro_batches(4)]
                assert [hashes(batch) for batch in ours] == [hashes(b) for b in expected]


def test_batches_before_and_after_a_resume_equal_an_uninterrupted_run(tiny_cache: Path) -> None:
    """At every step, over the end of an epoch."""
    cache = cache_format.open(tiny_cache)
    order = row_order(
        cache,
        TrainStudentConfig(batch_size=4, gradient_accumulation_steps=2),
        cache.num_rows("train"),
    )
    stop = order.steps_per_epoch + 2

    def read(first: int, stop: int) -> list[list[dict[str, str]]]:
        with Loader(cache, order, CPU, num_threads=2, with_sketch=True) as loader:
            return [[hashes(batch) for batch in step] for step in loader.steps(first, stop)]

    whole = read(0, stop)
    for step in range(stop):
        assert read(step, stop) == whole[step:]


def test_host_to_device_copies_use_the_stream_of_the_batch_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not to that of the first GPU, which is where a process begins."""
    asked: list[torch.device] = []

    class Stream:
        def wait_event(self, event: object) -> None:
            pass

    def current_stream(device: torch.device) -> Stream:
        asked.append(device)
        return Stream()

    monkeypatch.setattr("torch.cuda.current_stream", current_stream)
    second = torch.device("cuda:1")
    assert _in_use((), None, second) == ()  # type: ignore[arg-type]
    assert asked == [second]


def hashes(batch: Batch) -> dict[str, str]:
    """SHA-256 of every tensor."""
    return {
        name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        for name, tensor in tensors_of(batch)
    }


def test_scored_positions_are_those_with_labels(tiny_cache: Path) -> None:
    batch = read_batch(cache_format.open(tiny_cache), "train", [0, 4], with_sketch=False)
    assert torch.equal(batch.scored, (batch.labels.flatten() >= 0).nonzero()[:, 0])
    assert batch.num_scored == len(batch.scored) < batch.labels.numel()


def test_a_reader_s_failure_reaches_the_caller(tiny_cache: Path, tmp_path: Path) -> None:
    copy = tmp_path / "cache"
    shutil.copytree(tiny_cache, copy)
    cache = cache_format.open(copy)
    entry = cache.shards("train")[0]
    path = copy / entry.file
    path.chmod(0o644)
    damaged = bytearray(path.read_bytes())
    for position in range(len(damaged) // 3, 2 * len(damaged) // 3):
        damaged[position] ^= 1
    path.write_bytes(damaged)
    with (
        Loader(
            cache,
            row_order(
                cache,
                TrainStudentConfig(batch_size=1, gradient_accumulation_steps=1),
                entry.num_rows,
            ),
            CPU,
            num_threads=2,
            with_sketch=False,
        ) as loader,
        pytest.raises(CacheError, match=path.name),
    ):
        list(loader.steps(0, entry.num_rows))


def test_the_order_covers_the_first_rows_of_an_extended_cache(tiny_cache: Path) -> None:
    cache = cache_format.open(tiny_cache)
    first, second = (entry.num_rows for entry in cache.shards("train")[:2])
    order = row_order(cache, TrainStudentConfig(), first + second)
    assert order.rows_of_shards == (first, second)


class TestLocalSpace:
    def opened(self, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> Cache:
        """The cache as if it were at a URL, with room for copies."""
        cache = cache_format.open(tiny_cache)
        monkeypatch.setattr(Cache, "max_local_bytes", room)
        return cache

    @pytest.mark.parametrize("shuffle_shards", [1, 2, None])
    def test_a_shuffle_window_larger_than_local_space_is_refused(
        self, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch, shuffle_shards: int | None
    ) -> None:
        sizes = sorted(entry.num_bytes for entry in cache_format.open(tiny_cache).shards("train"))
        needed = sum(sizes[-(shuffle_shards or len(sizes)) :])
        config = TrainStudentConfig(
            batch_size=1, gradient_accumulation_steps=1, shuffle_shards=shuffle_shards
        )
        for room in (needed, needed - 1):
            cache = self.opened(tiny_cache, monkeypatch, room)
            if room == needed:
                row_order(cache, config, cache.num_rows("train"))
                continue
            with pytest.raises(
                ValueError, match=r"shuffle_shards: the rows .*raise the limit"
            ) as e:
                row_order(cache, config, cache.num_rows("train"))
            assert f"{needed:,} bytes" in str(e.value)
            assert f"may take only {room:,}" in str(e.value)

    def test_a_local_cache_needs_no_local_space(self, tiny_cache: Path) -> None:
        assert cache_format.open(tiny_cache).max_local_bytes is None
