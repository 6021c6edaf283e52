"""Two experts of one origin and their merge: which commands are typed, and the table of them."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import experts
from benchmarks.__main__ import main
from benchmarks.result_files import block

_LOSSES = {"base": 4.0, "modules": 3.5, "pages": 3.6, "merged": 3.4, "generalist": 3.3}


def loss_of(student: str) -> float:
    """On modules; seeds change it, and the difference to the merge."""
    name, _, seed = Path(student).name.rpartition("-")
    return _LOSSES[name] + (0.3 if name == "merged" else 0.1) * int(seed)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands; nothing is run."""
    commands: list[list[str]] = []

    def type_command(*words: object) -> str:
        commands.append(list(map(str, words)))
        if words[0] != "evaluate":
            return ""
        losses = [{"student": {"loss": loss_of(str(words[1])) + n}} for n in (0, 1)]
        return json.dumps({"caches": losses})

    found = [(f"a{n}.{end}#0", f"text {n}") for n in range(4) for end in ("py", "md")]
    monkeypatch.setattr(experts, "documents", lambda side: iter(found))
    monkeypatch.setattr(experts, "type_command", type_command)
    monkeypatch.setattr(experts, "type_here", type_command)
    monkeypatch.setattr(experts, "read_run", lambda path, _: path)
    monkeypatch.setattr(experts, "environment_of", lambda path: {"commit": path.name[-1]})
    return commands


def test_a_document_is_of_the_domain_of_its_file() -> None:
    assert experts.domain_of("json/decoder.py#0") == "modules"
    assert experts.domain_of("numpy/doc.rst#12") == "pages"


def test_experts_and_generalist_begin_with_one_student_and_take_equal_steps(
    tmp_path: Path, typed: list[list[str]]
) -> None:
    words = ["experts", "--work", str(tmp_path), "--expert-steps", "7", "--seeds", "2", "--json"]
    CliRunner().invoke(main, words, catch_exceptions=False)
    trained = {Path(c[c.index("--out") + 1]).name: c for c in typed if c[0] == "train-student"}
    assert len(trained) == 2 * 4
    for seed in (0, 1):
        base = trained[f"base-{seed}"]
        assert "--init" not in base
        assert f"train_student.seed={seed}" in base
        for name, num_caches in (("generalist", 2), ("modules", 1), ("pages", 1)):
            command = trained[f"{name}-{seed}"]
            assert command[-2:] == ["--init", str(tmp_path / f"base-{seed}")]
            assert "train_student.max_steps=7" in command
            assert f"train_student.seed={seed}" in command
            assert command.count("--cache") == num_caches
    merges = [command for command in typed if command[0] == "merge-students"]
    assert [merge[1:3] for merge in merges] == [
        [f"{tmp_path / f'{name}-{seed}'}=0.5" for name in experts.DOMAINS] for seed in (0, 1)
    ]
    texts = (tmp_path / "modules.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in texts] == [f"text {n}" for n in range(4)]


def test_differences_are_to_the_merge_of_the_same_seed(
    tmp_path: Path, typed: list[list[str]]
) -> None:
    words = ["experts", "--work", str(tmp_path), "--seeds", "2", "--json"]
    result = json.loads(CliRunner().invoke(main, words, catch_exceptions=False).stdout)
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == list(experts.STUDENTS.values())
    own = rows["expert: pages"]
    assert own["modules"] == {"mean": pytest.approx(3.65), "deviation": pytest.approx(0.0707, 1e-3)}
    assert own["pages_difference"]["mean"] == pytest.approx(3.65 - 3.55)
    assert own["pages_difference"]["deviation"] == pytest.approx(0.2 / 2**0.5)
    assert result["environment"] == "commit 0 and 1"
    assert "pages_difference" not in rows["merged, ½ each"]
    assert "| expert: pages | 3.6500 ±0.0707 | 0.1000 ±0.1414 |" in block(result)


def test_students_of_other_options_are_not_taken(tmp_path: Path, typed: list[list[str]]) -> None:
    words = ["experts", "--work", str(tmp_path), "--json"]
    assert CliRunner().invoke(main, [*words, "--quick"]).exit_code == 0
    typed.clear()
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    expected = "what it has is of other options (tokens, steps, expert_steps, compile)"
    assert expected in " ".join(result.stderr.split())
    assert not typed
    assert CliRunner().invoke(main, [*words, "--quick"]).exit_code == 0
