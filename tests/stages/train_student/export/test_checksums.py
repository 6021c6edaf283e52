"""A published student whose files are not what was published."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.students.student_files import load_student_tokenizer, student_files
from stages.train_student.export.checksums import CHECKSUMS
from stages.train_student.export.published_files import published_files
from stages.train_student.export.stored_student import load_stored_student
from tests.support.students import publish_student


@pytest.fixture
def model(tiny_cache: Path, tmp_path: Path) -> Path:
    return publish_student(tiny_cache, tmp_path / "run", has_checksums=True) / "model"


def flip(path: Path, index: int) -> None:
    data = bytearray(path.read_bytes())
    data[index] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum")
def test_sha256sum_can_check_the_published_files(model: Path) -> None:
    check = ["sha256sum", "--check", "--strict", "--quiet", CHECKSUMS]
    assert subprocess.run(check, cwd=model, check=False).returncode == 0
    flip(model / "model.safetensors", -1)
    assert subprocess.run(check, cwd=model, check=False, capture_output=True).returncode == 1


def test_one_flipped_bit_of_the_weights_is_named(model: Path) -> None:
    flip(model / "model.safetensors", -3)
    for read in (load_stored_student, published_files):
        with pytest.raises(ValueError, match=r"model\.safetensors: changed since .* delete SHA256"):
            read(model)


def test_one_flipped_bit_of_the_tokenizer_is_named(model: Path) -> None:
    text = (model / "tokenizer.json").read_text()
    (model / "tokenizer.json").write_text(text + " ")
    with pytest.raises(ValueError, match=r"tokenizer\.json: changed since it was published"):
        load_student_tokenizer(model, 10**6)


def test_files_missing_from_the_checksums_are_refused(model: Path) -> None:
    lines = (model / CHECKSUMS).read_text().splitlines(keepends=True)
    (model / CHECKSUMS).write_text("".join(line for line in lines if "model.safet" not in line))
    with pytest.raises(ValueError, match=r"model\.safetensors: not listed in SHA256SUMS"):
        load_stored_student(model)


@pytest.mark.parametrize("text", ["x", "0" * 64 + "  ../config.json\n", "\0"])
def test_damaged_checksums_are_named(model: Path, text: str) -> None:
    (model / CHECKSUMS).write_text(text)
    with pytest.raises(ValueError, match="SHA256SUMS: damaged"):
        load_stored_student(model)


def test_missing_checksums_and_an_edited_model_card_are_accepted(model: Path) -> None:
    (model / "README.md").write_text("mine\n")
    load_stored_student(model)
    assert "README.md" in published_files(model)
    (model / CHECKSUMS).unlink()
    flip(model / "model.safetensors", -1)
    load_stored_student(model)


@pytest.mark.parametrize(("name", "is_said"), [("step-9999999", True), ("step-x", False)])
def test_a_checkpoint_that_is_newer_than_the_model_is_mentioned(
    model: Path, name: str, is_said: bool
) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_steps": 9}))
    (model.parent / "checkpoints" / name).mkdir(parents=True)
    said: list[str] = []
    with student_files(model.parent, None, said.append) as student:
        assert student.directory == model
    assert [("step 9999999" in line) for line in said] == [True] * is_said


def test_a_checksum_file_that_is_no_regular_file_is_refused(model: Path) -> None:
    path = model / CHECKSUMS
    for make in (os.mkfifo, lambda where: where.symlink_to("/dev/zero"), Path.mkdir):
        path.unlink()
        make(path)
        with pytest.raises((ValueError, OSError), match=CHECKSUMS):
            load_stored_student(model)
        if path.is_dir():
            path.rmdir()
            path.touch()
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises((ValueError, OSError), match=CHECKSUMS):
        load_stored_student(model)


def test_an_oversized_checksum_file_is_refused(model: Path) -> None:
    with (model / CHECKSUMS).open("ab") as file:
        file.truncate(1 << 34)
    with pytest.raises(ValueError, match="SHA256SUMS: damaged"):
        load_stored_student(model)
