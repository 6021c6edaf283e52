"""Extensions of a run: which steps are fitted to which length, and what is no extension."""

import pytest

from stages.train_student.checkpoints.extension import (
    Extension,
    extended,
    extensions_before,
    num_steps_at,
)

TWICE = (Extension(from_step=10, to_step=20), Extension(from_step=15, to_step=30))


@pytest.mark.parametrize(
    ("step", "num_steps"), [(0, 10), (9, 10), (10, 20), (14, 20), (15, 30), (29, 30)]
)
def test_an_extension_does_not_change_earlier_schedule_steps(step: int, num_steps: int) -> None:
    assert num_steps_at(step, 10, TWICE) == num_steps


@pytest.mark.parametrize(("step", "number"), [(10, 0), (11, 1), (15, 1), (16, 2)])
def test_the_extensions_of_a_checkpoint_are_those_before_its_step(step: int, number: int) -> None:
    assert extensions_before(step, TWICE) == TWICE[:number]


@pytest.mark.parametrize(
    ("step", "to_step", "expected"),
    [
        (10, 20, TWICE[:1]),  # after the last step
        (4, 12, (Extension(from_step=4, to_step=12),)),  # before it
        (9, 10, ()),  # it goes there anyway
        (1, 11, (Extension(from_step=1, to_step=11),)),
    ],
)
def test_a_first_extension_starts_at_the_last_or_current_step(
    step: int, to_step: int, expected: tuple[Extension, ...]
) -> None:
    assert extended((), planned=10, step=step, to_step=to_step) == expected


def test_a_further_extension_extends_replaces_or_repeats_the_last() -> None:
    once = TWICE[:1]
    assert extended(once, planned=10, step=12, to_step=20) == once
    assert extended(once, planned=10, step=15, to_step=30) == TWICE
    assert extended(once, planned=10, step=20, to_step=21)[-1].from_step == 20
    # No step has been trained under it: after another checkpoint turned out to be damaged, too.
    for step in (10, 8):
        replaced = extended(once, planned=10, step=step, to_step=30)
        assert replaced == (Extension(from_step=step, to_step=30),)


@pytest.mark.parametrize(
    ("step", "to_step", "message"),
    [
        (0, 11, "max_steps=11 instead"),
        (10, 10, "has reached step 10"),
        (10, 9, "has reached step 10"),
        (5, 9, "already continues to step 10, and cannot be shortened"),
    ],
)
def test_an_invalid_extension_is_refused(step: int, to_step: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extended((), planned=10, step=step, to_step=to_step)
