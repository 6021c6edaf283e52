"""``pipeline win-and-tie``, as it is typed."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.command_line import done, run
from tests.support.result_files import write_results, write_samples

_STUDENT = {"a": 0.75, "b": 0.5, "c<&>$x$": 0.2}
_TEACHER = {"a": 0.5, "b": 0.625, "c<&>$x$": 0.4}


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    student = write_results(tmp_path / "student/results.json", _STUDENT)
    teacher = write_results(tmp_path / "teacher/results.json", _TEACHER)
    write_samples(student.with_name("samples_b.jsonl"), [1, 1, 1, 1, 0, 0, 0, 0])
    write_samples(teacher.with_name("samples_b.jsonl"), [1, 1, 1, 1, 1, 0, 0, 0])
    return student.parent, teacher.parent


def test_the_table(places: tuple[Path, Path]) -> None:
    student, teacher = places
    text = done("win-and-tie", student, "--teacher", teacher, "--resamples", "400").stdout
    lines = text.splitlines()
    assert lines[0] == "Benchmark set: all in the files (3 benchmarks)"
    rows = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert rows["b"] == ["acc", "0", "0.625", "0.5", "0.800", "0.2000", "8"]
    assert rows["a"][-2:] == ["0.0000", "–"]
    assert rows["C_α"] == ["0.333", "0.333", "0.333", "0.333", "0.333", "0.667", "1.000"]
    assert "α* = 0.2000 on all in the files (3 benchmarks)" in text
    assert "not lossless: C_0 = 1/3 = 0.333" in text
    assert re.search(r"over benchmarks: α\* 0\.0000 to 0\.5000, lossless in 2\d%", text)
    assert "over items (1 of 3 benchmarks have them): α* 0.0000 to 0.5000" in text


def test_json(places: tuple[Path, Path]) -> None:
    student, teacher = places
    arguments = ("win-and-tie", student, "--teacher", teacher, "--json", "--seed", "7")
    found = json.loads(done(*arguments).stdout)
    assert found["benchmark_set"] == {"name": "all in the files", "size": 3}
    assert found["alpha_star"] == pytest.approx(0.2)
    assert (found["c_0"], found["lossless"]) == (pytest.approx(1 / 3), False)
    assert found["curve"] == [
        [0.0, pytest.approx(1 / 3)],
        [pytest.approx(0.2), pytest.approx(2 / 3)],
        [0.5, 1.0],
    ]
    assert [each["items"] for each in found["benchmarks"]] == [None, 8, None]
    assert found["bootstrap"]["seed"] == 7
    assert found == json.loads(done(*arguments).stdout)


def test_chosen_benchmarks(places: tuple[Path, Path]) -> None:
    student, teacher = places
    options = ("--benchmark", "a", "--benchmark", "b=acc", "--json")
    found = json.loads(done("win-and-tie", student, "--teacher", teacher, *options).stdout)
    assert found["benchmark_set"] == {"name": "given benchmarks", "size": 2}
    assert found["lossless"]


def test_pictures(places: tuple[Path, Path], tmp_path: Path) -> None:
    student, teacher = places
    pictures = (tmp_path / "curve.png", tmp_path / "curve.html")
    options = ("--png", pictures[0], "--html", pictures[1], "--resamples", "20")
    done("win-and-tie", student, "--teacher", teacher, *options)
    assert pictures[0].read_bytes().startswith(b"\x89PNG")
    page = pictures[1].read_text(encoding="utf-8")
    assert "(3 benchmarks)" in page
    assert "<td>c&lt;&amp;&gt;$x$</td>" in page
    assert not re.search(r"<(script|link|img|iframe)|src=|url\(\s*['\"]?http|@import", page)
    svg = page[page.index("<svg") : page.index("</svg>") + 6]
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    first = pictures[1].read_bytes()
    done("win-and-tie", student, "--teacher", teacher, *options)
    assert pictures[1].read_bytes() == first


def test_refusals(places: tuple[Path, Path], tmp_path: Path) -> None:
    student, teacher = places
    both = run("win-and-tie", student, "--teacher", teacher, "--suite", "x", "--benchmark", "a")
    assert (both.exit_code, "not both" in both.stderr) == (2, True)
    twice = run("win-and-tie", student, "--teacher", teacher, *("--benchmark", "a") * 2)
    assert (twice.exit_code, "--benchmark a is given twice" in twice.stderr) == (2, True)
    lacking = run("win-and-tie", student, "--teacher", teacher, "--suite", "paper-base")
    assert lacking.exit_code == 1
    assert "paper-base: the student's results lack piqa" in lacking.stderr
    empty = run("win-and-tie", tmp_path, "--teacher", teacher)
    assert (empty.exit_code, "there is no such file" in empty.stderr) == (1, True)


@pytest.mark.parametrize("option", ["--html", "--png"])
def test_a_picture_needs_a_directory(
    places: tuple[Path, Path], tmp_path: Path, option: str
) -> None:
    student, teacher = places
    result = run("win-and-tie", student, "--teacher", teacher, option, tmp_path / "none/x.html")
    assert (result.exit_code, "no such directory" in result.stderr) == (2, True)


def test_percent_against_fractions_is_warned_of(tmp_path: Path) -> None:
    student = write_results(tmp_path / "student.json", {"a": 50.0, "b": 1.0})
    teacher = write_results(tmp_path / "teacher.json", {"a": 0.5, "b": 0.6})
    words = "Warning: scores of the student are above 1, but none of the teacher"
    assert words in done("win-and-tie", student, "--teacher", teacher).stdout
    found = json.loads(done("win-and-tie", student, "--teacher", teacher, "--json").stdout)
    assert found["notes"][0].startswith(words)
    assert "Warning" not in done("win-and-tie", student, "--teacher", student).stdout
    assert "Warning" not in done("win-and-tie", teacher, "--teacher", teacher).stdout
