"""Two experts of one origin and their merge: which commands are typed, and the table of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import experts
from benchmarks.__main__ import main

_LOSSES = {"base": 4.0, "modules": 3.5, "pages": 3.6, "merged": 3.4, "generalist": 3.3}


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands; nothing is run."""
    commands: list[list[str]] = []

    def type_command(*words: object) -> str:
        commands.append(list(map(str, words)))
        losses: Any = [
            {"student": {"loss": _LOSSES.get(Path(str(words[1])).name, 0.0) + n}} for n in (0, 1)
        ]
        return json.dumps({"caches": losses})

    found = [(f"a{n}.{end}#0", f"text {n}") for n in range(4) for end in ("py", "md")]
    monkeypatch.setattr(experts, "documents", lambda side: iter(found))
    monkeypatch.setattr(experts, "type_command", type_command)
    return commands


def test_a_document_is_of_the_domain_of_its_file() -> None:
    assert experts.domain_of("json/decoder.py#0") == "modules"
    assert experts.domain_of("numpy/doc.rst#12") == "pages"


def test_experts_and_generalist_begin_with_one_student_and_take_equal_steps(
    tmp_path: Path, typed: list[list[str]]
) -> None:
    words = ["experts", "--work", str(tmp_path), "--expert-steps", "7", "--json"]
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    assert json.loads(result.stdout) == {
        name: {"modules": loss, "pages": loss + 1} for name, loss in _LOSSES.items()
    }
    trained = {Path(c[c.index("--out") + 1]).name: c for c in typed if c[0] == "train-student"}
    assert "--init" not in trained["base"]
    for name, num_caches in (("generalist", 2), ("modules", 1), ("pages", 1)):
        assert trained[name][-2:] == ["--init", str(tmp_path / "base")]
        assert "train_student.max_steps=7" in trained[name]
        assert trained[name].count("--cache") == num_caches
    (merge,) = [command for command in typed if command[0] == "merge-students"]
    assert merge[1:3] == [f"{tmp_path / name}=0.5" for name in experts.DOMAINS]
    texts = (tmp_path / "modules.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in texts] == [f"text {n}" for n in range(4)]


def test_students_of_other_options_are_not_taken(tmp_path: Path, typed: list[list[str]]) -> None:
    words = ["experts", "--work", str(tmp_path), "--json"]
    assert CliRunner().invoke(main, [*words, "--quick"]).exit_code == 0
    typed.clear()
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    expected = "what it has is of other options (tokens, steps, expert_steps)"
    assert expected in " ".join(result.stderr.split())
    assert not typed
    assert CliRunner().invoke(main, [*words, "--quick"]).exit_code == 0
