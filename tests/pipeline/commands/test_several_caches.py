"""A student of several caches by the commands a person types."""

import json
from pathlib import Path

import pytest

import cache_format
from tests.support import tiny
from tests.support.command_line import done, run
from tests.support.train_runs import metrics

_RECIPE = """
[train_student.student]
num_blocks = 1
slstm_at = [0]
num_heads = 2
qkv_block_size = 4
[train_student]
batch_size = 4
gradient_accumulation_steps = 2
max_steps = 2
validation_rows = 6
precision = "fp32"
compile = "off"
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a recipe, and the caches "web" and "math" of the teacher beside them."""
    root = tmp_path_factory.mktemp("several")
    (root / "tiny.toml").write_text(_RECIPE)
    teacher = tiny.save_tiny_teacher(root / "teacher")
    for seed, name in enumerate(("web", "math")):
        tiny.cache_texts(teacher, root / name, tiny.tiny_texts(60, seed=seed))
    return root


def command(root: Path, out: Path, web: str = "web=0.7", math: str = "math=0.3") -> list[str]:
    words = ["train-student", "--recipe", str(root / "tiny.toml"), "--out", str(out)]
    return [*words, "--cache", str(root / web), "--cache", str(root / math)]


@pytest.fixture(scope="module")
def student(root: Path) -> Path:
    done(*command(root, root / "run"))
    return root / "run"


def test_events_have_the_figures_of_each_cache(root: Path, tmp_path: Path) -> None:
    result = done(*command(root, tmp_path / "run"), "--json", "--quiet")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert events[0]["cache"] == f"{root / 'web'}=0.7, {root / 'math'}=0.3"
    found = events[-1]["metrics"]
    for label in ("web", "math"):
        assert found[f"validation/{label}/loss"] > 0
    assert found["validation/loss"] > 0


def test_the_last_line_shows_the_whole_and_each_cache(root: Path, tmp_path: Path) -> None:
    text = done(*command(root, tmp_path / "run")).output
    assert "; math: loss " in text
    assert "; web: loss " in text


def test_a_finished_run_is_resumed_with_its_caches_and_weights_alone(
    root: Path, student: Path
) -> None:
    done(*command(root, student), "--resume")
    refused = run(*command(root, student, web="web=0.6", math="math=0.4"), "--resume")
    assert refused.exit_code == 1
    assert f"the weight of {root / 'web'} was 0.7 and is 0.6" in refused.stderr
    refused = run(*command(root, student, web="web", math="math"), "--resume")
    assert refused.exit_code == 1
    assert "was 0.7 and is its number of rows" in refused.stderr


def test_a_report_lists_the_caches_and_their_figures(student: Path, tmp_path: Path) -> None:
    done("report", student, "--out", tmp_path / "report")
    text = (tmp_path / "report/report.md").read_text()
    assert "## Results by cache" in text
    for name in ("web", "math"):
        assert f"| {name} | run | " in text
        assert str(student.parent / name).replace("_", r"\_") in text.replace(r"\-", "-")


def test_the_teacher_in_the_loop_trains_on_the_rows_of_all_caches(
    root: Path, tmp_path: Path
) -> None:
    teacher = str(root / "teacher")
    done(*command(root, tmp_path / "run"), "--teacher-in-the-loop", teacher)
    found = metrics(tmp_path / "run")
    assert found[-1]["validation/math/kl"] > 0
    assert found[1]["train/kl"] > 0


def test_caches_of_other_targets_are_refused_by_name(root: Path, tmp_path: Path) -> None:
    texts = tiny.tiny_texts(40, seed=2)
    tiny.cache_texts(root / "teacher", tmp_path / "hidden", texts, targets="hidden")
    refused = run(*command(root, tmp_path / "run", math=str(tmp_path / "hidden")), "--quiet")
    assert refused.exit_code == 2  # web has a weight
    words = command(root, tmp_path / "run", "web", str(tmp_path / "hidden"))
    refused = run(*words)
    assert refused.exit_code == 1
    assert "one student cannot learn from both: cache_teacher.targets is " in refused.stderr
    for place in (root / "web", tmp_path / "hidden"):
        assert str(place) in refused.stderr
    assert not (tmp_path / "run").exists()


def test_the_same_cache_twice_is_refused(root: Path, tmp_path: Path) -> None:
    refused = run(*command(root, tmp_path / "run", math="web/../web=0.3"))
    assert refused.exit_code == 1
    assert "the same cache as" in refused.stderr
    assert cache_format.open(root / "web").cache_id[:12] in refused.stderr
