"""Both stages with the cache on an S3 server, by the commands a person types."""

import json
import re
from pathlib import Path

import pytest

import cache_format
from cache_format.storage.remote import RemoteStorage
from tests.support import tiny
from tests.support.command_line import run

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

_STUDENT = """
[train_student.student]
num_blocks = 2
slstm_at = [0]
num_heads = 2
qkv_block_size = 4
[train_student]
batch_size = 2
gradient_accumulation_steps = 1
max_steps = 12
precision = "fp32"
compile = "off"
loss_chunk = 64
logging_steps = 1
validation_rows = 4
save_steps = 6
"""


def losses(out: Path) -> list[tuple[int, float]]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    return [(m["step"], m["train/loss"]) for m in metrics if "train/loss" in m]


def test_both_stages_run_on_an_object_store(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    url, local = f"{bucket}/cache", tmp_path / "cache"
    teacher = tiny.save_tiny_teacher(tmp_path / "teacher")
    corpus = tiny.write_fineweb_parquet(tmp_path / "corpus.parquet", tiny.tiny_texts(90))
    settings = {
        "teacher": teacher,
        "corpus": corpus,
        "compile": "off",
        **{"sequence_length": 32, "documents_per_unit": 10, "validation_every": 4, "top_k": 12},
    }
    command = ["cache-teacher", "--recipe", "demo"]
    for key, value in settings.items():
        command += ["--set", f"cache_teacher.{key}={value}"]

    begun = run(*command, "--out", url, "--tokens", "500")
    assert begun.exit_code == 0, begun.output
    assert f"--cache {url} --out RUN" in begun.stdout
    first = {entry.unit: entry for entry in cache_format.open(url).manifest.shards}
    for out in (
        ["--out", url, "--worker", "1/2"],
        ["--out", url, "--worker", "0/2"],
        ["--out", local],
    ):
        done = run(*command, *out, "--tokens", "1M")
        assert done.exit_code == 0, done.output
    assert not (tmp_path / "xdg").exists()
    on_disk = cache_format.open(local).manifest
    held = cache_format.open(url).manifest
    assert held == on_disk
    assert 0 < len(first) < len(held.shards)
    assert all(entry in held.shards for entry in first.values())
    assert RemoteStorage(url).read("recipe.toml") == (local / "recipe.toml").read_bytes()

    inspected = run("inspect", url)
    assert inspected.exit_code == 0, inspected.output
    assert f"{url}: complete" in inspected.stdout
    assert "next token" in run("inspect", url, "--row", "0").stdout
    verified = run("verify", url, "--state", tmp_path / "state")
    assert verified.exit_code == 0, verified.output
    assert f"{url}: every byte is as it was written" in verified.stdout
    _train_from_both(url, local, tmp_path)


def _train_from_both(url: str, local: Path, tmp_path: Path) -> None:
    """Through a bound smaller than the training shards, and from the disk: the same losses."""
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(_STUDENT)
    sizes = sorted(entry.num_bytes for entry in cache_format.open(url).shards("train"))
    bound = sum(sizes[-2:])
    assert sum(sizes) > 1.5 * bound
    gib = f"{(bound + 100) / 2**30:.12f}"
    near: list[str | Path] = ["--local-directory", tmp_path / "near", "--local-gib", gib]
    train: list[str | Path] = ["train-student", "--recipe", recipe]
    refused = run(*train, "--cache", url, "--out", tmp_path / "a", *near)
    assert refused.exit_code == 1
    suggested = re.search(r"Set shuffle_shards to about (\d+)", refused.stderr)
    assert suggested is not None, refused.output
    assert not (tmp_path / "near").exists()
    mixed = ["--set", "train_student.shuffle_shards=2"]
    far = run(*train, "--cache", url, "--out", tmp_path / "a", *near, *mixed)
    assert far.exit_code == 0, far.output
    shards = tmp_path / "near" / cache_format.open(url).cache_id / "shards"
    assert 0 < sum(path.stat().st_size for path in shards.iterdir()) <= bound + 100
    here = run(*train, "--cache", local, "--out", tmp_path / "b", *mixed)
    assert here.exit_code == 0, here.output
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert len(losses(tmp_path / "a")) == 12


def test_a_missing_object_store_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    result = run("inspect", "gs://bucket/cache")
    assert result.exit_code == 1
    assert "gs://bucket/cache: no driver for it is installed" in result.stderr
    assert "pip install gcsfs" in result.stderr
