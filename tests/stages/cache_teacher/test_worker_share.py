"""Which worker a process is, and which GPU it takes."""

from itertools import islice

import pytest

from stages.cache_teacher.worker_share import WorkerShare, device_of_worker


def parsed(text: str, **environment: str) -> tuple[int, int]:
    share = WorkerShare.parse(text, environment)
    return share.worker, share.num_workers


def test_every_unit_belongs_to_exactly_one_worker() -> None:
    shares = [WorkerShare(worker=worker, num_workers=3) for worker in range(3)]
    units = [list(islice(share.numbers(), 4)) for share in shares]
    assert units == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


def test_a_share_is_parsed_from_r_slash_r() -> None:
    assert parsed("0/1") == (0, 1)
    assert parsed("7/8") == (7, 8)
    assert str(WorkerShare(worker=7, num_workers=8)) == "7/8"


@pytest.mark.parametrize("text", ["", "3", "/", "1/", "-1/2", "a/b", "1/2/3", " 0/2", "1.0/2"])
def test_malformed_worker_shares_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected r/R, such as 0/8"):
        parsed(text)


@pytest.mark.parametrize("text", ["8/8", "0/0"])
def test_a_worker_number_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="workers count from 0 to"):
        parsed(text)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RANK": "3", "WORLD_SIZE": "4", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (3, 4)),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "8"}, (5, 8)),
        ({"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "4"}, (2, 4)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "12",
                "SLURM_ARRAY_TASK_MIN": "10",
                "SLURM_ARRAY_TASK_COUNT": "4",
            },
            (2, 4),
        ),
        (
            {
                "SLURM_ARRAY_TASK_ID": "30",
                "SLURM_ARRAY_TASK_MIN": "10",
                "SLURM_ARRAY_TASK_STEP": "10",
                "SLURM_ARRAY_TASK_COUNT": "3",
            },
            (2, 3),
        ),
        # A job of an array says that it is process 0 of 1, or has several of its own.
        (
            {
                "SLURM_ARRAY_TASK_ID": "2",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_PROCID": "0",
                "SLURM_NTASKS": "1",
            },
            (2, 4),
        ),
        (
            {
                "SLURM_ARRAY_TASK_ID": "2",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_PROCID": "1",
                "SLURM_NTASKS": "3",
            },
            (7, 12),
        ),
    ],
)
def test_auto_reads_the_worker_from_the_environment(
    environment: dict[str, str], expected: tuple[int, int]
) -> None:
    assert parsed("auto", **environment) == expected


def test_auto_without_environment_variables_is_refused() -> None:
    with pytest.raises(ValueError, match="neither RANK and WORLD_SIZE"):
        parsed("auto", LOCAL_RANK="1")


def test_auto_with_an_invalid_number_is_refused() -> None:
    with pytest.raises(ValueError, match="RANK is 'one', not a number"):
        parsed("auto", RANK="one", WORLD_SIZE="2")


@pytest.mark.parametrize(
    ("device", "worker", "num_gpus", "environment", "expected"),
    [
        ("auto", 11, 0, {"LOCAL_RANK": "3"}, "auto"),
        ("cuda:1", 11, 8, {"LOCAL_RANK": "3"}, "cuda:1"),
        ("auto", 12, 8, {"LOCAL_RANK": "3"}, "cuda:3"),
        ("auto", 12, 8, {"SLURM_LOCALID": "5"}, "cuda:5"),
        ("auto", 12, 1, {"SLURM_LOCALID": "5"}, "cuda:0"),  # it is shown one GPU, its own
        ("auto", 0, 8, {}, "cuda:0"),  # eight commands by hand
        ("auto", 7, 8, {}, "cuda:7"),
        ("auto", 12, 8, {}, "cuda:4"),
        ("auto", 5, 1, {}, "cuda:0"),
    ],
)
def test_every_worker_on_a_machine_gets_its_own_gpu(
    device: str, worker: int, num_gpus: int, environment: dict[str, str], expected: str
) -> None:
    assert device_of_worker(device, worker, num_gpus, environment) == expected
