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
def test_a_student_kind_has_the_name_of_its_model_type(name: str) -> None:
    assert student_kind(name).config_class.model_type == name
    assert student_kind(name).model_class.config_class is student_kind(name).config_class
    assert student_settings(name).kind == name


@kinds
def test_settings_and_their_weight_and_speed_keys_are_consistent(name: str) -> None:
    settings: Any = SETTINGS[name]
    fields = {field.name for field in dataclasses.fields(settings)}
    assert fields >= {"kind", *settings.weight_keys, *settings.speed_keys}
    assert isinstance(settings().train_head, bool)
    assert not settings.speed_keys & set(settings.weight_keys)
    written = student_kind(name).config_class()
    for key in set(settings.weight_keys) | set(student_kind(name).stored_settings):
        assert hasattr(written, key), key


def test_settings_of_a_student_kind_are_made_and_checked() -> None:
    assert student_settings() == SETTINGS[DEFAULT_KIND]()
    assert student_settings("distil_xlstm", train_head=True).train_head
    with pytest.raises(ValueError, match="num_heads: must be from 1 to 2"):
        student_settings("distil_xlstm", num_heads=0)


@pytest.mark.parametrize("name", ["transformer", "", None, ["distil_xlstm"]])
def test_an_unknown_student_kind_is_refused(name: Any) -> None:
    expected = re.escape(f'unknown kind {name!r}; the known ones are "distil_xlstm"')
    for function in (settings_class, student_settings, student_kind):
        with pytest.raises(ValueError, match=expected):
            function(name)
