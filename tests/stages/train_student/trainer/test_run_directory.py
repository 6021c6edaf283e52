"""Settings that are newer than a run."""

from dataclasses import replace
from typing import Any

from stages.train_student.config import TrainStudentConfig
from stages.train_student.trainer.run_directory import differences, with_new_settings


def identity_of(config: TrainStudentConfig) -> dict[str, Any]:
    return with_new_settings({"cache_id": "c"}, config)


def test_a_run_of_an_older_version_resumes_if_new_settings_have_their_defaults() -> None:
    config = TrainStudentConfig(learning_rate=1e-3)
    now = identity_of(config) | {"learning_rate": 1e-3}
    before = dict(now)
    del before["max_grad_norm"]
    before["student"] = {key: now["student"][key] for key in ("kind", "num_blocks")}
    assert differences(with_new_settings(before, config), now) == []


def test_a_changed_new_setting_is_named_on_resuming_an_older_run() -> None:
    default = TrainStudentConfig().max_grad_norm
    config = replace(TrainStudentConfig(), max_grad_norm=default / 2)
    now = identity_of(config) | {"max_grad_norm": default / 2}
    before = {key: value for key, value in now.items() if key != "max_grad_norm"}
    (difference,) = differences(with_new_settings(before, config), now)
    assert difference == f"max_grad_norm was {default!r} and is {default / 2!r}"
