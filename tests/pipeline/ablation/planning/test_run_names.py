"""Names of runs: readable, and never two for one directory."""

import pytest

from pipeline.ablation.planning.run_names import point_name, run_name


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ({}, "a"),
        ({"train_student.student.num_blocks": 4}, "a/num_blocks=4"),
        ({"train_student.student.slstm_at": [0, 2]}, "a/slstm_at=0+2"),
        ({"train_student.student.slstm_at": []}, "a/slstm_at=empty"),
        ({"train_student.learning_rate": 1e-4}, "a/learning_rate=0.0001"),
        (
            {"train_student.epoch_rule": "subtract", "train_student.student.train_head": True},
            "a/epoch_rule=subtract,train_head=true",
        ),
        ({"train_student.device": "cuda:1/../x"}, "a/device=cuda-1-..-x"),
    ],
)
def test_a_point_is_named_after_its_settings(grid: dict[str, object], expected: str) -> None:
    assert point_name("a", grid) == expected
    assert run_name(expected, 7) == f"{expected}/seed=7"


def test_a_key_that_two_tables_have_is_named_in_full() -> None:
    name = point_name("a", {"train_student.student.learning_rate": 1})
    assert name == "a/train_student.student.learning_rate=1"


def test_a_name_that_no_directory_can_have_is_refused() -> None:
    with pytest.raises(ValueError, match="Write such settings as variants"):
        point_name("a", {"train_student.device": "x" * 300})
