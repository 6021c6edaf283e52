"""Students and weights as they are typed."""

from pathlib import Path

import pytest

from pipeline.students.merge_weights import WeightedStudent, complete_weights, parse_weighted


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("math/model", "code/model", "x=y"):
        Path(name).mkdir(parents=True)


def weights(*words: str, normalize: bool = False) -> tuple[float, ...]:
    return complete_weights(parse_weighted(words), normalize=normalize)


def test_weights_and_names() -> None:
    found = parse_weighted(["math=0.4", "code/model=.6", "x=y=1e-3"])
    assert [student.weight for student in found] == [0.4, 0.6, 0.001]
    assert [student.name for student in found] == ["math", "code", "x=y"]
    assert [str(student.place) for student in found] == ["math", "code/model", "x=y"]


def test_without_weights_they_are_equal() -> None:
    assert weights("math", "code") == (0.5, 0.5)
    assert parse_weighted(["math", "x=y"])[1] == WeightedStudent(place=Path("x=y"), weight=None)


def test_they_add_up_to_one_or_are_scaled() -> None:
    assert weights("math=.3", "code=.7") == (0.3, 0.7)
    assert weights("math=0.3333333", "code=0.6666667") == (0.3333333, 0.6666667)
    assert weights("math=3", "code=1", normalize=True) == (0.75, 0.25)
    with pytest.raises(ValueError, match=r"add up to 0\.99, expected 1\. --normalize"):
        weights("math=.3", "code=.69")
    with pytest.raises(ValueError, match=r"add up to 0, expected 1\.$"):
        weights("math=0", "code=0", normalize=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("math=1",), "one student alone"),
        (("math=.5", "code"), "code: has no weight, but others have"),
        (("math=-1", "code=2"), "'-1' is no weight"),
        (("math=nan", "code=1"), "'nan' is no weight"),
        (("math=", "code=1"), "'' is no weight"),
        (("math=1e999", "code=1"), "'1e999' is no weight"),
        (("maths=.5", "code=.5"), "'maths' is no directory"),
    ],
)
def test_refusals(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weights(*words)
