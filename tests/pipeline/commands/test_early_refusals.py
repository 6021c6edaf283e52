"""What can be refused without torch and transformers is refused before they are imported.

One interpreter that has imported neither goes through all refusals, and says what it has imported.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages.train_student.checkpoints.run_record import RunRecord, write_record
from tests.support import ROOT, tiny

_HEAVY = ("torch", "transformers", "datasets", "xlstm", "tensorboard")
_PROGRAM = f"""
import json, sys
from click.testing import CliRunner
from pipeline.cli import main
for line in sys.stdin:
    result = CliRunner().invoke(main, json.loads(line))
    heavy = [name for name in {_HEAVY} if name in sys.modules]
    print(json.dumps([result.exit_code, result.stderr, heavy]))
"""

CACHE = ("cache-teacher", "--recipe", "small", "--out", "new")
TRAIN = ("train-student", "--recipe", "small", "--cache", "cache", "--out", "new")


def places(teacher: str = "teacher", corpus: str = "corpus") -> tuple[str, ...]:
    return (
        *("--set", f"cache_teacher.teacher={teacher}"),
        *("--set", f"cache_teacher.corpus={corpus}"),
    )


def out(command: tuple[str, ...], directory: str) -> tuple[str, ...]:
    return (*command[:-1], directory)


REFUSALS: dict[str, tuple[tuple[str, ...], str]] = {
    "nothing set": (CACHE, "cache_teacher.teacher and cache_teacher.corpus not set"),
    "demo by hand": (("cache-teacher", "--recipe", "demo", "--out", "new"), "`pipeline demo`"),
    "one set": ((*CACHE, *places(corpus="")), "recipe small: cache_teacher.corpus not set. Add:"),
    "estimate": (("estimate", "--recipe", "small"), "cache_teacher.teacher and"),
    "teacher": ((*CACHE, *places("./gone")), "teacher './gone': no such directory; expected a"),
    "gguf": ((*CACHE, *places("x.gguf")), "a file; expected a directory with config.json"),
    "gguf, next": ((*CACHE, *places("x.gguf")), "use the model that it was converted from"),
    "bin": ((*CACHE, *places("x.bin")), "Pickled weights are never loaded. Load the model with"),
    "gone": ((*CACHE, *places("gone.gguf")), "teacher 'gone.gguf': no such directory"),
    "weights": (
        (*CACHE, *places("teacher/model.safetensors")),
        "Did you mean its directory, 'teacher'?",
    ),
    "corpus": ((*CACHE, *places(corpus="./gone")), "corpus './gone': no such file or directory"),
    "odd corpus": ((*CACHE, *places(corpus="x.bin")), "unsupported kind of file '.bin'"),
    "no text": ((*CACHE, *places(corpus="teacher")), "corpus"),
    "foreign out": ((*out(CACHE, "corpus"), *places()), "not a cache: expected spec.json"),
    "out is a file": ((*out(CACHE, "x.bin"), *places()), "'x.bin' is a file; expected a directory"),
    "another cache": ((*out(CACHE, "cache"), *places()), "sequence_length: expected 128, found 32"),
    "summary": ((*CACHE, *places(), "--summary", "gone/x"), "gone: no such directory"),
    "log file": ((*CACHE, *places(), "--log-file", "gone/x"), "gone: no such directory"),
    "estimate's teacher": (
        ("estimate", "--recipe", "small", *places("./gone")),
        "no such directory",
    ),
    "recipe": (("cache-teacher", "--recipe", "teacher", "--out", "new"), "teacher: a directory;"),
    "a cache as recipe": (
        ("train-student", "--recipe", "cache", "--cache", "cache", "--out", "new"),
        "Did you mean cache/recipe.toml?",
    ),
    "no cache": (
        ("train-student", "--recipe", "small", "--cache", "corpus", "--out", "new"),
        "not a cache: expected manifest.json",
    ),
    "cache is a file": (
        ("train-student", "--recipe", "small", "--cache", "x.bin", "--out", "new"),
        "'x.bin' is a file; expected a directory that cache-teacher wrote",
    ),
    "packed cache": (
        ("train-student", "--recipe", "small", "--cache", "x.tar.zst", "--out", "new"),
        "pipeline unpack x.tar.zst CACHE",
    ),
    "a run": (out(TRAIN, "run"), "run already holds a run"),
    "another run": ((*out(TRAIN, "run"), "--resume"), "run holds another run"),
    "no run": (out(TRAIN, "corpus"), "corpus is not empty, and not a run"),
    "temperature": (
        (*TRAIN, "--set", "train_student.temperature_start=4.0"),
        "the cache holds temperatures from 1 to 2",
    ),
    "generate from a file": (("generate", "x.bin", "--prompt", "a"), "'x.bin' is a file; expected"),
    "generate from no run": (("generate", "corpus", "--prompt", "a"), "neither a run of"),
    "evaluate no run": (("evaluate", "corpus", "--cache", "cache"), "neither a run of"),
    "push no run": (("push", "corpus", "me/mine"), "neither a run of"),
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory, tiny_cache: Path) -> dict[str, Any]:
    """Exit code, message and heavy modules of each refusal, in their order."""
    root = tmp_path_factory.mktemp("refusals")
    shutil.copytree(tiny_cache, root / "cache")
    shutil.copytree(tiny_cache.parent / "teacher", root / "teacher")
    tiny.write_fineweb_parquet(root / "corpus/corpus.parquet", tiny.tiny_texts(3))
    (root / "run/checkpoints/step-7").mkdir(parents=True)
    rows = {"num_train_rows": 1, "num_validation_rows": 1}
    shards = {"num_train_shards": 1, "num_validation_shards": 1}
    identity = rows | shards | {"cache_id": "other"}
    write_record(root / "run", RunRecord(identity=identity, cache_location="cache"))
    for name in ("x.gguf", "x.bin", "x.tar.zst"):
        (root / name).touch()
    before = sorted(root.rglob("*"))
    finished = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        input="".join(json.dumps(words) + "\n" for words, _ in REFUSALS.values()),
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert sorted(root.rglob("*")) == before
    lines = map(json.loads, finished.stdout.splitlines())
    return dict(zip(REFUSALS, lines, strict=True))


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_comes_before_heavy_imports(name: str, refusals: dict[str, Any]) -> None:
    exit_code, message, heavy = refusals[name]
    assert exit_code in (1, 2)
    assert REFUSALS[name][1] in message
    assert heavy == []
