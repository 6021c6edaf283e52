"""What the Hub refuses, as the user reads it."""

from dataclasses import replace
from typing import Any

import pytest

from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.corpus.hub import model_snapshot


def test_a_refusal_of_the_hub_ends_with_one_full_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise ValueError("Set the environment variable.")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    config = replace(CacheTeacherConfig(), teacher="some/model")
    with pytest.raises(ValueError, match=r"the environment variable\. On a machine without"):
        model_snapshot(config, ())
