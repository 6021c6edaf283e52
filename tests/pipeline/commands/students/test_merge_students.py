"""``pipeline merge-students``: two experts on two domains, merged by given and by found weights."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stages.cache_teacher.run import cache_teacher
from tests.support import tiny
from tests.support.command_line import done, run
from tests.support.train_configs import tiny_train_config
from tests.support.train_runs import run as train

_DOMAINS = {"trade": "the of and cache row token unit", "travel": "he was on 東京 Straße café who"}


@dataclass(frozen=True)
class Experts:
    """Two students that began alike, and the caches of their domains."""

    runs: tuple[Path, Path]
    caches: tuple[Path, Path]

    def loss(self, student: Path, cache: Path) -> float:
        found = json.loads(done("evaluate", student, "--cache", cache, "--json").stdout)
        return float(found["student"]["loss"])

    def mixed_loss(self, student: Path) -> float:
        return sum(self.loss(student, cache) for cache in self.caches) / 2


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Experts:
    root = tmp_path_factory.mktemp("experts")
    teacher = tiny.save_tiny_teacher(root / "teacher")
    caches, runs = [], []
    for name, text in _DOMAINS.items():
        words = text.split()
        documents = [
            " ".join(words[(start + 3 * place) % len(words)] for place in range(12))
            for start in range(60)
        ]
        corpus = tiny.write_fineweb_parquet(root / f"{name}.parquet", documents)
        cache_teacher(
            tiny.tiny_cache_config(teacher, corpus),
            root / f"{name}-cache",
            recipe_toml="# tiny\n",
            report=lambda _: None,
        )
        caches.append(root / f"{name}-cache")
        config = tiny_train_config(max_steps=24, num_train_epochs=10, dropout=0.0)
        train(config, caches[-1], root / name)
        runs.append(root / name)
    return Experts(runs=(runs[0], runs[1]), caches=(caches[0], caches[1]))


def search(experts: Experts, out: Path, *more: str) -> dict[str, Any]:
    caches = [word for cache in experts.caches for word in ("--search", cache)]
    words = ("merge-students", *experts.runs, *caches, "--out", out, "--json", *more)
    found: dict[str, Any] = json.loads(done(*words).stdout)
    return found


def test_the_merge_that_is_found_is_as_good_as_the_better_expert_on_both_domains(
    experts: Experts, tmp_path: Path
) -> None:
    found = search(experts, tmp_path / "merged", "--evaluations", "10")
    losses = [trial["loss"] for trial in found["trials"]]
    alone = [experts.mixed_loss(student) for student in experts.runs]
    assert losses[1:3] == pytest.approx(alone, rel=1e-5)
    assert min(losses) == pytest.approx(experts.mixed_loss(tmp_path / "merged"), rel=1e-5)
    assert min(losses) < min(alone)
    assert sum(weight for _, weight in found["weights"]) == pytest.approx(1)
    for student, foreign in zip(experts.runs, reversed(experts.caches), strict=True):
        assert experts.loss(tmp_path / "merged", foreign) < experts.loss(student, foreign)
    fields = json.loads((tmp_path / "merged/config.json").read_text())
    ancestors = [[each["name"], each["weight"]] for each in fields["merged_from"]]
    assert ancestors == found["weights"]
    assert [each["num_steps"] for each in fields["merged_from"]] == [24, 24]
    card = (tmp_path / "merged/README.md").read_text()
    assert "found by a search over 10 merges" in card


def test_the_search_repeats_itself(experts: Experts, tmp_path: Path) -> None:
    options = ("--evaluations", "6", "--rows", "4")
    first, second = (search(experts, tmp_path / name, *options) for name in ("a", "b"))
    assert first["trials"] == second["trials"]
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ab"
    ]
    assert files[0] == files[1]


def test_given_weights_and_the_table_of_a_search(experts: Experts, tmp_path: Path) -> None:
    one, other = experts.runs
    given = done("merge-students", f"{one}=3", f"{other}=1", "--normalize", "--out", tmp_path / "a")
    assert given.stdout == f"{tmp_path / 'a'}: 0.75 trade + 0.25 travel\n"
    cache = experts.caches[0]
    words = (f"{one}=.9", f"{other}=.1", "--search", cache, "--evaluations", "4", "--rows", "4")
    lines = done("merge-students", *words, "--out", tmp_path / "b").stdout.splitlines()
    assert lines[0].split() == ["trial", "trade", "travel", "loss"]
    assert [line.split()[:3] for line in lines[1:5]] == [
        ["1", "0.9000", "0.1000"],
        ["2", "1.0000", "0.0000"],
        ["3", "0.0000", "1.0000"],
        ["4", "0.5000", "0.5000"],
    ]
    assert sum(line.endswith("best") for line in lines) == 1
    assert done("generate", tmp_path / "a", "--prompt", "the", "--max-new-tokens", "3").stdout


def test_a_merged_student_is_trained_further(experts: Experts, tmp_path: Path) -> None:
    words = [f"{student}=.5" for student in experts.runs]
    done("merge-students", *words, "--out", tmp_path / "merged")
    config = tiny_train_config(max_steps=1, dropout=0.0)
    found = train(config, experts.caches[0], tmp_path / "more", init=tmp_path / "merged")
    before = experts.loss(tmp_path / "merged", experts.caches[0])
    assert found["validation/loss"] < before  # one step from random weights is far above


def test_refusals(experts: Experts, tmp_path: Path, tiny_cache: Path) -> None:
    one, other = experts.runs
    there = run("merge-students", f"{one}=.5", f"{other}=.5", "--out", one)
    assert (there.exit_code, "is there already" in there.stderr) == (2, True)
    without = run("merge-students", one, other, "--out", tmp_path / "x")
    assert (without.exit_code, "give each student a weight" in without.stderr) == (2, True)
    no_sum = run("merge-students", f"{one}=.5", f"{other}=.6", "--out", tmp_path / "x")
    assert (no_sum.exit_code, "add up to 1.1" in no_sum.stderr) == (1, True)
    few = run(
        *("merge-students", one, other, "--search", experts.caches[0], "--evaluations", "3"),
        *("--out", tmp_path / "x"),
    )
    assert (few.exit_code, "need at least 4" in few.stderr) == (1, True)
    assert not (tmp_path / "x").exists()


def test_a_cache_of_another_teacher_is_refused(experts: Experts, tmp_path: Path) -> None:
    teacher = tiny.save_tiny_teacher(tmp_path / "teacher", seed=9)
    corpus = tiny.write_fineweb_parquet(tmp_path / "c.parquet", tiny.tiny_texts(40))
    cache_teacher(
        tiny.tiny_cache_config(teacher, corpus),
        tmp_path / "cache",
        recipe_toml="# tiny\n",
        report=lambda _: None,
    )
    words = (*experts.runs, "--search", tmp_path / "cache", "--out", tmp_path / "x")
    refused = run("merge-students", *words)
    assert (refused.exit_code, "made by another teacher" in refused.stderr) == (1, True)


def test_students_that_began_with_other_weights_are_refused_unless_asked_for(
    experts: Experts, tmp_path: Path
) -> None:
    config = tiny_train_config(max_steps=2, dropout=0.0, seed=1)
    train(config, experts.caches[1], tmp_path / "other")
    words = ("merge-students", f"{experts.runs[0]}=0.5", f"{tmp_path / 'other'}=0.5", "--out")
    refused = run(*words, tmp_path / "merged")
    assert refused.exit_code == 1
    assert "began with other weights than" in refused.stderr
    assert "each from the weights of the same student" in refused.stderr
    assert not (tmp_path / "merged").exists()
    done(*words, tmp_path / "merged", "--any-origin")
    assert "origin_sha256" not in json.loads((tmp_path / "merged/config.json").read_text())


def test_a_merged_student_has_the_origin_of_its_parents_and_older_ones_are_named(
    experts: Experts, tmp_path: Path
) -> None:
    origins = [json.loads((run / "model/config.json").read_text()) for run in experts.runs]
    older = tmp_path / "older"
    shutil.copytree(experts.runs[1] / "model", older)
    fields = json.loads((older / "config.json").read_text())
    del fields["origin_sha256"]
    (older / "config.json").write_text(json.dumps(fields))
    (older / "SHA256SUMS").unlink()
    pair = [f"{run}=0.5" for run in experts.runs]
    done("merge-students", *pair, "--out", tmp_path / "merged")
    merged = json.loads((tmp_path / "merged/config.json").read_text())
    assert {found["origin_sha256"] for found in [*origins, merged]} == {merged["origin_sha256"]}
    result = done("merge-students", pair[0], f"{older}=0.5", "--out", tmp_path / "with-older")
    assert f"{older}: does not tell what weights it began with" in result.stderr
