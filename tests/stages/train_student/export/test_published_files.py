"""What does not leave a model directory for the Hub."""

from pathlib import Path
from typing import Any

import pytest

from stages.train_student.export.published_files import published_files
from tests.support.hostile import change_json
from tests.support.students import publish_student


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"architectures": ["Evil"]}),
        ("config.json", {"num_blocks": "x"}),
        ("config.json", {"custom_pipelines": {}}),
        ("tokenizer_config.json", {"vocab": "/etc/passwd"}),
        ("tokenizer_config.json", {"tokenizer_file": "/etc/passwd"}),
        ("tokenizer_config.json", {"gguf_file": "x.gguf"}),
        ("generation_config.json", {"configuration_files": ["x.json"]}),
    ],
)
def test_settings_that_no_student_has_are_refused(
    tiny_cache: Path, tmp_path: Path, file: str, changes: dict[str, Any]
) -> None:
    model = publish_student(tiny_cache, tmp_path / "run") / "model"
    assert published_files(model)
    change_json(model / file, changes)
    with pytest.raises(ValueError, match=rf"{file}: {next(iter(changes))}"):
        published_files(model)
