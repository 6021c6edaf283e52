"""`pipeline evaluate --needle`: known answers of made-up models, students, teachers."""

import json
import math
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from pipeline.commands.evaluate import evaluate
from pipeline.students.needles.models import Reader, StudentReader, TeacherReader
from pipeline.students.needles.probe import NeedleOptions, answer, probe
from pipeline.students.needles.prompts import make_prompt
from pipeline.students.student_files import load_student_model
from stages.model_files.tokenizer_files import load_tokenizer
from tests.support import tiny
from tests.support.hybrid_students import VOCAB, make_ids, make_noisy_hybrid, make_teacher
from tests.support.students import publish_student

VOCAB_SIZE = 320
OPTIONS = NeedleOptions(lengths=(100, 150), num_trials=2, device="cpu")


class Copying:
    """A reader that holds likeliest what followed the longest earlier copy of the text's end."""

    def read(self, context: Any, ids: Sequence[int], num_logits: int) -> tuple[Tensor, Any]:
        text = [*(context or ()), *ids]
        logits = torch.zeros(num_logits, VOCAB_SIZE)
        for row in range(num_logits):
            logits[row, self.next_of(text[: len(text) - num_logits + 1 + row])] = 30.0
        return logits, text

    def next_of(self, text: list[int]) -> int:
        for length in range(min(30, len(text) - 1), 0, -1):
            for first in range(len(text) - length - 1, -1, -1):
                if text[first : first + length] == text[-length:]:
                    return text[first + length]
        return 0


class Indifferent:
    """A reader to which all ids are equally likely."""

    def read(self, context: Any, ids: Sequence[int], num_logits: int) -> tuple[Tensor, Any]:
        return torch.zeros(num_logits, VOCAB_SIZE), None


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("tokenizer")
    assert tiny.save_tiny_tokenizer(directory) <= VOCAB_SIZE
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def run(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_student(tiny_cache, tmp_path_factory.mktemp("run"))


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(evaluate, [str(argument) for argument in arguments])


def test_a_model_that_copies_finds_every_needle_and_one_that_does_not_finds_none(
    tokenizer: Any,
) -> None:
    told: list[tuple[int, int]] = []
    readers: dict[str, Reader] = {"teacher": Copying(), "student": Indifferent()}
    found = probe(readers, tokenizer, OPTIONS, lambda *both: told.append(both))
    assert found["lengths"] == [100, 150]
    right, wrong = found["teacher"], found["student"]
    for name in ("recall", "choice", "rank"):
        assert right[name] == [[1.0] * 5] * 2
    assert wrong["recall"] == wrong["choice"] == [[0.0] * 5] * 2
    assert wrong["rank"] == [[10.0] * 5] * 2
    assert min(chain(*right["logprob"])) > -1e-6 > max(chain(*wrong["logprob"]))
    assert told[-1] == (2 * 2 * 5 * 250,) * 2
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_the_log_probability_is_that_of_the_whole_text(run: Path, tokenizer: Any) -> None:
    """Read at once, without a state."""
    model: Any = load_student_model(run)
    prompt = make_prompt(tokenizer, 110, 0.5, 0)
    found = answer(StudentReader(model, torch.device("cpu")), tokenizer, prompt)
    logprobs = []
    for ids in prompt.answers:
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt.input_ids, *ids]])).logits[0].double()
        rows = logits[109:-1].log_softmax(-1)
        logprobs.append(float(rows.gather(1, torch.tensor(ids)[:, None]).sum()))
    assert found.logprob == pytest.approx(logprobs[0], abs=1e-3)
    assert found.rank == 1 + sum(other >= logprobs[0] for other in logprobs[1:])


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_readers_may_go_on_from_one_context_several_times(family: str) -> None:
    teacher = make_teacher(family)
    student = make_noisy_hybrid(teacher, window=8)
    device = torch.device("cpu")
    ids = make_ids(1, 40)[0].tolist()
    for model, reader in (
        (teacher, TeacherReader(teacher, device, VOCAB)),
        (student, StudentReader(student, device)),
    ):
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0, :, :VOCAB]
        first, context = reader.read(None, ids[:30], 1)
        reader.read(context, ids[5:12], 2)
        middle, after = reader.read(context, ids[30:39], 9)
        last, _ = reader.read(after, ids[39:], 1)
        found = torch.cat([first, middle, last])
        torch.testing.assert_close(found, expected[29:], rtol=0, atol=1e-4)


def test_logits_that_are_no_numbers_are_refused(tokenizer: Any) -> None:
    class Broken(Indifferent):
        def read(self, context: Any, ids: Sequence[int], num_logits: int) -> tuple[Tensor, Any]:
            return torch.full((num_logits, VOCAB_SIZE), math.nan), None

    with pytest.raises(ValueError, match="logits after 100 tokens are NaN"):
        answer(Broken(), tokenizer, make_prompt(tokenizer, 100, 0.0, 0))


def test_the_command_prints_tables_or_json_and_draws(
    run: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "needle.png"
    common = ("--needle", "150,100", "--needle-trials", "1", "--device", "cpu")
    words = (*common, "--teacher", tiny_cache.parent / "teacher")
    text = invoke(run, *words, "--needle-picture", picture)
    assert text.exit_code == 0, text.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    titles = [line for line in text.stdout.splitlines() if line.startswith(("tea", "stu"))]
    assert titles == [
        "teacher, number generated",
        "teacher, number likeliest of 10",
        "student, number generated",
        "student, number likeliest of 10",
    ]
    assert "needle: 2.50k of 2.50k tok" in text.stderr
    found = json.loads(invoke(run, *words, "--json").stdout)["needle"]
    assert found["lengths"] == [100, 150]
    figures = [found[who][name] for who in ("teacher", "student") for name in found[who]]
    assert len(figures) == 8
    for rows in figures:
        assert [len(row) for row in rows] == [5, 5]
        assert all(math.isfinite(figure) for figure in chain(*rows))
    rows = [line.split() for line in text.stdout.splitlines() if line.split()[:1] == ["100"]]
    assert rows[1][1:6] == [f"{value:.2f}" for value in found["teacher"]["choice"][0]]
    alone = json.loads(invoke(run, *common, "--json").stdout)["needle"]
    assert alone["student"] == found["student"]
    assert "teacher" not in alone


def test_a_picture_that_has_no_place_is_refused_before_the_work(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(*_: Any) -> dict[str, Any]:
        raise AssertionError("the prompts were evaluated")

    monkeypatch.setattr("pipeline.commands.evaluate._look_for_needles", look)
    words = ("--needle", "100", "--needle-picture")
    nowhere = invoke(run, *words, tmp_path / "none/needle.png")
    assert (nowhere.exit_code, "none: no such directory" in nowhere.stderr) == (2, True)
    # A superuser may write anywhere.
    monkeypatch.setattr("os.access", lambda _, mode: not mode & os.W_OK)
    read_only = invoke(run, *words, tmp_path / "needle.png")
    assert (read_only.exit_code, "not writable; make it so" in read_only.stderr) == (2, True)


def test_the_tables_are_printed_even_if_the_picture_cannot_be(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(*_: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr("pipeline.students.needles.report.draw_needles", draw)
    words = ("--needle", "100", "--needle-trials", "1", "--device", "cpu")
    result = invoke(run, *words, "--needle-picture", tmp_path / "needle.png")
    assert "the disk is gone" in str(result.exception)
    assert "student, number generated" in result.stdout


def test_another_teacher_is_refused(run: Path, tmp_path: Path) -> None:
    other = tiny.save_tiny_teacher(tmp_path / "other", seed=1)
    result = invoke(run, "--needle", "100", "--teacher", other)
    assert "not the teacher that the student learned from" in str(result.exception)
    (other / "model.safetensors").unlink()
    result = invoke(run, "--needle", "100", "--teacher", other)
    assert "expected a directory with config.json and safetensors" in str(result.exception)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--needle", "many"), "expected numbers such as 512,1024"),
        (("--needle", "512,"), "expected numbers such as 512,1024"),
        (("--needle", "0,512"), "expected lengths from 1 to 1048576"),
        (("--needle", "1048577"), "expected lengths from 1 to 1048576"),
        (("--tasks", "a", "--teacher", "."), "--teacher goes with --needle"),
        (("--tasks", "a", "--needle-picture", "x.png"), "--needle-picture goes with --needle"),
        ((), "give --cache, --tasks, --needle"),
    ],
)
def test_wrong_options_are_refused(run: Path, words: tuple[str, ...], message: str) -> None:
    result = invoke(run, *words)
    assert result.exit_code == 2
    assert message in result.stderr
