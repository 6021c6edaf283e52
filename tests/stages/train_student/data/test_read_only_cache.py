"""Stage two reads a cache that nobody may write to, and does not try to write to it."""

import shutil
from pathlib import Path

from tests.support.faults import Disk
from tests.support.read_only import read_only
from tests.support.sample_cache import contents
from tests.support.train_configs import tiny_train_config
from tests.support.train_runs import run


def test_training_works_on_a_read_only_cache(tiny_cache: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(tiny_cache, cache)
    before = contents(cache)
    with read_only(cache), Disk(cache) as disk:
        run(tiny_train_config(max_steps=2, eval_steps=2), cache, tmp_path / "out")
    assert (tmp_path / "out/model").is_dir()
    assert {call.path.parent.name for call in disk.calls} >= {"shards", "receipts", "teacher"}
    assert disk.changes() == []
    assert contents(cache) == before
