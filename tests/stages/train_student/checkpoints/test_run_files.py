"""A run's JSON files are never replaced by what could not be read back."""

from pathlib import Path

import pytest

from cache_format.errors import CorruptFileError
from stages.train_student.checkpoints.extension import Extension
from stages.train_student.run_files import parse_run_file, write_run_file


def test_a_run_file_that_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    path, good = tmp_path / "extension.json", Extension(from_step=1, to_step=2)
    write_run_file(path, good)
    with pytest.raises(CorruptFileError, match="to_step"):
        write_run_file(path, Extension(from_step=1, to_step=2**70))
    assert parse_run_file(Extension, path.read_bytes(), path, "") == good
