"""Every kind of student fits what the rest of stage two asks of it."""

import dataclasses
import re
from typing import Any

import pytest

from stages.train_student.students.registry import (
    DEFAULT_KIND,
    SETTINGS,
    settings_class,
    student_kind,
    student_settings,
)

kinds = pytest.mark.parametrize("name", SETTINGS)


@kinds
def test_a_kind_is_named_as_its_models_are(name: str) -> None:
    assert student_kind(name).config_class.model_type == name
    assert student_kind(name).model_class.config_class is student_kind(name).config_class
    assert student_settings(name).kind == name


@kinds
def test_what_settings_say_of_each_other_is_so(name: str) -> None:
    settings: Any = SETTINGS[name]
    fields = {field.name for field in dataclasses.fields(settings)}
    assert fields >= {"kind", "train_head", *settings.weight_keys, *settings.speed_keys}
    assert not settings.speed_keys & set(settings.weight_keys)
    written = student_kind(name).config_class()
    for key in set(settings.weight_keys) | set(student_kind(name).stored_settings):
        assert hasattr(written, key), key


def test_settings_of_a_kind() -> None:
    assert student_settings() == SETTINGS[DEFAULT_KIND]()
    assert student_settings("distil_xlstm", train_head=True).train_head
    with pytest.raises(ValueError, match="num_heads: must be from 1 to 2"):
        student_settings("distil_xlstm", num_heads=0)


@pytest.mark.parametrize("name", ["transformer", "", None, ["distil_xlstm"]])
def test_a_kind_that_there_is_not(name: Any) -> None:
    expected = re.escape(f'unknown kind {name!r}; the known ones are "distil_xlstm"')
    for function in (settings_class, student_settings, student_kind):
        with pytest.raises(ValueError, match=expected):
            function(name)
