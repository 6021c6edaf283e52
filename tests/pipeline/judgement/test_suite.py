"""Suites: the shipped ones, one's own, and what is wrong with a file."""

from pathlib import Path

import pytest

from pipeline.judgement.suite import is_suite, load_suite, suite_names


def test_the_shipped_suites() -> None:
    assert suite_names() == ["paper-base", "paper-instruct"]
    sizes = {
        name: len(load_suite(name).tasks)
        for suite in suite_names()
        for name in (suite, f"{suite}:understanding", f"{suite}:generation")
    }
    assert sizes == {
        "paper-base": 13,
        "paper-base:understanding": 6,
        "paper-base:generation": 7,
        "paper-instruct": 18,
        "paper-instruct:understanding": 6,
        "paper-instruct:generation": 12,
    }


@pytest.mark.parametrize("name", suite_names())
def test_an_answer_leaves_room_for_the_question(name: str) -> None:
    suite = load_suite(name)
    assert suite.max_length is not None
    for task in suite.tasks:
        assert task.metric is not None
        assert (task.max_new_tokens or 0) <= suite.max_length // 2


def test_instruction_models_are_asked_in_their_template_and_base_models_are_not() -> None:
    assert all(task.chat_template for task in load_suite("paper-instruct").tasks)
    assert not any(task.chat_template for task in load_suite("paper-base").tasks)


@pytest.mark.slow
def test_the_harness_has_the_tasks_of_the_shipped_suites() -> None:
    tasks = pytest.importorskip("lm_eval.tasks", reason="lm-evaluation-harness is not installed")
    manager = tasks.TaskManager()
    for name in suite_names():
        for task in load_suite(name).tasks:
            assert manager.match_tasks([task.task]) == [task.task]


def test_a_suite_of_one_s_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[[tasks]]\ntask = "a"\npart = "x"\n[[tasks]]\ntask = "b"\nnum_fewshot = 0\n')
    assert is_suite(str(path))
    suite = load_suite(str(path))
    assert (suite.name, [task.task for task in suite.tasks]) == ("mine", ["a", "b"])
    part = load_suite(f"{path}:x")
    assert (part.name, [task.task for task in part.tasks]) == ("mine:x", ["a"])
    with pytest.raises(ValueError, match="no part 'y'; it has x"):
        load_suite(f"{path}:y")


def test_names_of_tasks_are_no_suites() -> None:
    assert not is_suite("hellaswag")
    assert is_suite("paper-base:generation")
    with pytest.raises(ValueError, match="no suite 'hellaswag': there are paper-base"):
        load_suite("hellaswag")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected .*tasks.* tables"),
        ("tasks = 3", "expected .*tasks.* tables"),
        ('[[tasks]]\ntask = "a"\nshots = 3', "a: unknown key 'shots'"),
        ('other = 1\n[[tasks]]\ntask = "a"', "unknown key 'other'"),
        ("[[tasks]]\nnum_fewshot = 3", "lacks its task"),
        ('[[tasks]]\ntask = "a"\n[[tasks]]\ntask = "a"', "task 'a' is there twice"),
        ('[[tasks]]\ntask = "a"\nnum_fewshot = -1', "expected a whole number ≥ 0, found -1"),
        ('[[tasks]]\ntask = "a"\nmax_new_tokens = 0', "expected a whole number ≥ 1, found 0"),
        ('[[tasks]]\ntask = "a"\nmetric = 3', "metric: expected a string"),
        ('[[tasks]]\ntask = "a"\nchat_template = 1', "expected true or false, found 1"),
        ('[[tasks]]\ntask = "a"\nfewshot_as_multiturn = true', "needs chat_template"),
        ('max_length = 1\n[[tasks]]\ntask = "a"', "max_length: expected a whole number ≥ 2"),
        ("[[tasks", "suite .*mine.toml: "),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_suite(str(tmp_path / "mine.toml"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mine\.toml: cannot be read"):
        load_suite(str(tmp_path / "mine.toml"))
