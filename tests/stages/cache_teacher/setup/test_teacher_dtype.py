"""The teacher's precision where the recipe leaves it open: the cache's, or the machine's."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cache_format.errors import SpecMismatchError
from stages.cache_teacher.setup.teacher_dtype import with_teacher_dtype
from tests.support.half_precision_cpus import set_cpu
from tests.support.stage_one_runs import Bench
from tests.support.tiny import tiny_cache_config

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("bf16", "device", "dtype", "said"),
    [
        (True, CPU, "bfloat16", ""),
        (False, CPU, "float32", "teacher_dtype is float32: this CPU has no instructions"),
        (False, torch.device("cuda"), "bfloat16", ""),
        (False, None, "bfloat16", ""),  # a cluster's
    ],
)
def test_auto_picks_the_dtype_the_device_is_fast_in(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    bf16: bool,
    device: torch.device | None,
    dtype: str,
    said: str,
) -> None:
    set_cpu(monkeypatch, bf16=bf16)
    lines: list[str] = []
    config = tiny_cache_config("teacher", "corpus", teacher_dtype="auto")
    found = with_teacher_dtype(config, tmp_path / "cache", device, lines.append)
    assert found.teacher_dtype == dtype
    assert len(lines) == (1 if said else 0)
    assert said in "".join(lines)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_given_slow_dtype_is_kept_with_a_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dtype: str
) -> None:
    lines: list[str] = []
    config = tiny_cache_config("teacher", "corpus", teacher_dtype=dtype)
    for is_fast in (False, True):
        set_cpu(monkeypatch, bf16=is_fast, fp16=is_fast)
        assert with_teacher_dtype(config, tmp_path, CPU, lines.append) == config
    assert len(lines) == 1
    assert f"teacher_dtype is {dtype}, for which this CPU has no instructions" in lines[0]


def test_a_cache_keeps_its_dtype_on_every_machine(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same recipe goes on with it, and one that names another dtype is refused."""
    auto: dict[str, Any] = {"teacher_dtype": "auto", "documents_per_unit": 8}
    set_cpu(monkeypatch, bf16=False)
    assert bench.run(num_tokens=1, **auto).spec.teacher.dtype == "float32"
    set_cpu(monkeypatch, bf16=True)
    more = bench.run(num_tokens=1000, **auto)
    assert more.spec.teacher.dtype == "float32"
    assert len(more.shards) > 1
    with pytest.raises(SpecMismatchError, match=r"cache_teacher\.teacher_dtype: expected"):
        bench.run(num_tokens=1000, **(auto | {"teacher_dtype": "bfloat16"}))


def test_a_run_reports_the_chosen_dtype_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    set_cpu(monkeypatch, bf16=False)
    bench.run(num_tokens=1, teacher_dtype="auto")
    assert ["teacher_dtype" in report.message for report in bench.reports].count(True) == 1
