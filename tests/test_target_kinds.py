"""A kind of target that is registered in one package is registered in all."""

from collections.abc import Collection
from typing import get_args, get_type_hints

import pytest

from cache_format.codec.targets.kinds import TARGET_KINDS as CODED
from cache_format.metadata.spec_parts.targets import _PARTS, Kind
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.target_settings import SETTINGS_OF_KINDS
from stages.cache_teacher.targets.kinds import TARGET_KINDS as MADE
from stages.train_student.data.targets.kinds import TARGET_KINDS as LEARNED

_REGISTERED: dict[str, Collection[str]] = {
    "spec": _PARTS,
    "codec": CODED,
    "settings": SETTINGS_OF_KINDS,
    "choices of the recipe": get_args(get_type_hints(CacheTeacherConfig)["targets"]),
    "stage one": MADE,
    "stage two": LEARNED,
}


@pytest.mark.parametrize("where", _REGISTERED)
def test_every_target_kind_is_handled_everywhere(where: str) -> None:
    assert sorted(_REGISTERED[where]) == sorted(get_args(Kind))
