"""The page, taken apart: whole, alone, readable, and no place for a stranger's code."""

import base64
import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pipeline.run_report.charts.chart_svg import HEIGHT, WIDTH
from pipeline.run_report.markdown import markdown
from pipeline.run_report.page import page
from pipeline.run_report.page_style import SCRIPT, STYLE
from pipeline.run_report.recorded.find_runs import find_runs
from pipeline.run_report.report import make_report
from stages.train_student.checkpoints.run_record import read_record, write_record
from tests.support.html_pages import PageParts, parse
from tests.support.run_directories import write_run

_GATES = {
    **{f"validation/output_gate_layer_{layer:02}": layer / 10 for layer in range(5)},
    **{f"validation/alignment_layer_{layer:02}": 10.0**-layer for layer in range(5)},
    "validation/mlstm_share": 0.3,
    "validation/alignment": 0.25,
}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two seeds of one recipe, a failed run, and a hybrid one."""
    place = tmp_path / "runs"
    for seed in range(2):
        write_run(place / f"annealed/seed-{seed}", seed=seed, loss=4.0 + seed / 5)
    write_run(place / "labels", alpha_start=0.0, loss=4.5, environment={"torch": "2.13.0"})
    write_run(place / "broken", beta_end=0.0, steps=3, is_finished=False)
    write_run(place / "hybrid", figures=_GATES, loss=3.0, beta_start=0.0)
    return place


def made(*places: Path, rank_by: str = "loss") -> str:
    return page(make_report(find_runs(places), rank_by), "Made by a test.")


def charts(text: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(each) for each in re.findall(r"(?s)<svg viewBox.*?</svg>", text)]


def require_harmless(found: PageParts) -> None:
    assert found.tags.count("script") == 1
    assert found.tags.count("style") == 1
    assert not {"link", "img", "iframe", "object", "embed", "a", "base", "form"} & set(found.tags)
    assert found.addresses == []
    assert found.handlers == []
    assert found.code == {"style": [STYLE], "script": [SCRIPT]}
    assert not any(name == "style" for _, name, _ in found.attributes)


def test_the_page_is_whole_and_fetches_nothing(runs: Path) -> None:
    text = made(runs)
    require_harmless(parse(text))
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)|\bimport\b|fetch\(|eval", text)


def test_the_policy_allows_our_script_and_style_alone(runs: Path) -> None:
    found = parse(made(runs))
    policy = next(
        value for tag, name, value in found.attributes if (tag, name) == ("meta", "content")
    )
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    for kind in ("script", "style"):
        digest = hashlib.sha256("".join(found.code[kind]).encode()).digest()
        assert f"{kind}-src 'sha256-{base64.b64encode(digest).decode()}'" in policy


def test_everything_is_said(runs: Path) -> None:
    shown = parse(made(runs)).shown
    for text in (
        *("5 runs of 4 recipes", "annealed", "labels", "hybrid", "2 (seeds 0, 1)"),
        *("4.1000 ± 0.1414", "1 (seed 0), not finished", "The teacher's loss on these rows is 2.5"),
        *("failed or interrupted at step 3 of 8", "Not all runs have finished: 1 failed"),
        *("Differences of the recipes", "alpha_start", "beta_end"),
        *("Cost of a run", "2 kB", "0:16", "25.0%", "abab", "a teacher at main", "2.13.0"),
        *("Validation loss", "Gradient norm", "α, weight of the KL term", "optimizer step"),
        *("Output gate over depth", "Alignment error over depth", "layer", "Made by a test."),
    ):
        assert text in shown, text
    assert "learned from" not in shown


def test_recipes_are_ranked(runs: Path) -> None:
    """By loss; what has not finished comes last, whatever it has reached."""
    table = parse(made(runs)).shown.partition("Results on cache")[2].partition("Last validation")[0]
    places = [table.index(name) for name in ("hybrid", "annealed", "labels", "broken")]
    assert places == sorted(places)


def test_runs_that_begin_from_other_weights_are_told_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "drawn")
    for name, letter in (("one", "a"), ("two", "b")):
        path = write_run(tmp_path / name, initial_weights_sha256=letter * 64)
        record = read_record(path)
        write_record(path, replace(record, init_location=f"/runs/{letter}"))
    shown = parse(made(tmp_path)).shown
    assert "begins from" in shown
    for letter in "ab":
        assert f"/runs/{letter} (weights {letter * 12})" in shown


def test_other_caches_are_told_apart(runs: Path) -> None:
    write_run(runs / "elsewhere", cache_id="00" * 32, loss=1.0)
    shown = parse(made(runs)).shown
    assert "These runs learned from 2 caches. Loss and KL compare only within one cache" in shown
    assert "Results on cache abababababab" in shown
    assert "Results on cache 000000000000" in shown


def test_charts_have_a_line_for_each_run_and_one_for_the_mean(runs: Path) -> None:
    loss = charts(made(runs))[0]
    lines = loss.findall(".//polyline")
    labels = [line.get("data-label") for line in lines]
    assert labels == [
        "hybrid",
        *("annealed/seed-0", "annealed/seed-1", "annealed (mean)"),
        *("labels", "broken"),
    ]
    assert [line.get("data-group") for line in lines] == ["0", "1", "1", "1", "2", "3"]
    assert "faint" in (lines[1].get("class") or "")
    reference = loss.find(".//line[@class='reference']/title")
    assert reference is not None
    assert reference.text == "teacher 2.5000"


def test_points_lie_in_the_frame_where_they_are_to_be_seen(runs: Path) -> None:
    for chart in charts(made(runs)):
        left, top, right, bottom = map(int, (chart.get("data-box") or "").split())
        assert 0 <= left < right <= WIDTH
        assert 0 <= top < bottom <= HEIGHT
        for line in chart.findall(".//polyline"):
            places = [point.split(",") for point in (line.get("points") or "").split()]
            assert all(left <= float(x) <= right for x, _ in places)
            # The untrained student's figure may lie above; a log axis has no room for zero.
            assert all(top <= float(y) <= bottom for _, y in places[1:])


def test_nothing_is_wider_than_a_phone(runs: Path) -> None:
    text = made(runs)
    found = parse(text)
    assert ("meta", "content", "width=device-width, initial-scale=1") in found.attributes
    assert found.tables_outside == 0
    assert len(charts(text)) > 10
    for chart in charts(text):
        assert chart.get("viewBox") == f"0 0 {WIDTH} {HEIGHT}"
        assert chart.get("width") is None
    assert re.search(r"\.scroll \{ overflow-x: auto; max-width: 100% \}", STYLE)
    assert re.search(r"figure svg \{[^}]*width: 100%; max-width: 100%; height: auto", STYLE)
    assert "minmax(min(100%, 26rem), 1fr)" in STYLE
    assert "overflow-wrap: anywhere" in STYLE
    fixed = re.findall(r"(?<![-\w])(?:min-)?width: (\d+)px", STYLE)
    assert all(int(width) < 390 for width in fixed)


def test_texts_of_charts_lie_within_them(runs: Path) -> None:
    """As wide as 0.62 of their size for each character, which sans-serif digits are not."""
    for chart in charts(made(runs)):
        for each in chart.findall(".//text"):
            width = 13 * 0.62 * len(each.text or "")
            x, anchor = float(each.get("x") or 0), each.get("text-anchor")
            start = x - {"end": width, "middle": width / 2}[anchor or ""]
            assert start >= 0, each.text
            assert start + width <= WIDTH, each.text


def test_light_dark_and_print_have_all_colours() -> None:
    names = set(re.findall(r"var\((--\w+)\)", STYLE))
    assert {"--page", "--text", "--c0", "--c7"} <= names
    light, _, rest = STYLE.partition("@media (prefers-color-scheme: dark)")
    dark, _, printed = rest.partition("@media print")
    for part in (light, dark, printed):
        assert names <= set(re.findall(r"(--\w+):", part))
    assert "color-scheme: light dark" in light
    assert STYLE.count("{") == STYLE.count("}")


def test_metrics_whose_names_are_alike_have_charts_of_their_own(tmp_path: Path) -> None:
    write_run(tmp_path / "run", figures={"validation/a.b": 1.0, "validation/a-b": 2.0})
    slugs = [chart.slug for chart in make_report(find_runs([tmp_path]), "loss").charts]
    assert {"validation-a-b", "validation-a-b-2"} <= set(slugs)
    assert len(set(slugs)) == len(slugs)


def test_a_page_without_figures_says_so(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", is_finished=False)
    (path / "metrics.jsonl").unlink()
    found = parse(made(tmp_path))
    require_harmless(found)
    assert "The runs have not reported any figure yet." in found.shown
    assert "failed or interrupted at step 0 of 8" in found.shown


def test_unreadable_runs_are_named_and_the_rest_is_shown(runs: Path) -> None:
    (runs / "labels/run.json").write_text("{")
    shown = parse(made(runs)).shown
    assert "labels/run.json: damaged" in shown
    assert "1 unreadable" in shown
    assert "4.1000 ± 0.1414" in shown


_EVIL = "\"'><script>alert(1)</script><img src=//evil.example onerror=alert(1)>&lt;\u202e|`x`$\\"


def test_strangers_texts_are_text(tmp_path: Path) -> None:
    place = tmp_path / "runs"
    name, evil = _EVIL.replace("/", "∕"), dict[str, Any]({_EVIL: _EVIL})
    for seed in range(2):
        path = write_run(
            place / f"{name}{seed}",
            seed=seed,
            cache_id=_EVIL,
            environment={_EVIL: _EVIL},
            figures={
                f"validation/{_EVIL}": 1.0,
                f"train/{_EVIL}": 1.0,
                f"validation/{_EVIL}_layer_00": 1.0,
                _EVIL: 1.0,
            },
            **evil,
        )
        record = read_record(path)
        record.identity["teacher"] = {"source": _EVIL, "weights_sha256": _EVIL, "revision": [_EVIL]}
        fields = vars(record) | {"cache_location": _EVIL}
        write_record(path, type(record)(**fields))
        (path / "recipe.toml").write_text(
            "[train_student]\ndevice = '''" + _EVIL.replace("'", "") + "'''\n"
        )
    write_run(place / "broken", **evil)
    (place / "broken/run.json").write_text(_EVIL)
    (place / "broken/recipe.toml").write_text(_EVIL)
    text = made(place)
    found = parse(text)
    require_harmless(found)
    shown = _EVIL.replace("\u202e", "\\u202e")
    assert shown in found.shown
    assert "\u202e" not in text
    assert all("evil" not in (chart.get("aria-label") or "") for chart in charts(text))
    tables = markdown(make_report(find_runs([place]), "loss"), "")
    assert "<script" not in tables.replace("\\<", "")
    for line in tables.splitlines():
        if line.startswith("| "):
            bars = re.sub(r"\\\\", "", line)
            assert len(re.findall(r"(?<!\\)\|", bars)) >= 3
    assert not re.search(r"(?<!\\)[<>`]", tables.replace("\n> ", "\n").replace("\\\\", ""))


_ODD: list[Any] = [None, True, -1, 2**63 - 1, 1.5, "x", [1], {"a": {"b": [{}]}}]


def test_identities_of_other_types_are_shown(tmp_path: Path) -> None:
    """Each setting that a report computes with may be anything."""
    keys = (
        *("max_steps", "seed", "batch_size", "num_train_epochs", "num_train_rows"),
        *("num_validation_rows", "teacher", "student", "shards_sha256", "initial_weights_sha256"),
    )
    for number, value in enumerate(_ODD):
        settings: dict[str, Any] = dict.fromkeys(keys, value)
        write_run(tmp_path / f"run-{number}", **settings)
    found = parse(made(tmp_path))
    require_harmless(found)
    assert "8 runs of " in found.shown


def test_a_report_of_unreadable_runs_says_so(tmp_path: Path) -> None:
    (write_run(tmp_path / "run") / "run.json").write_text("{}")
    found = parse(made(tmp_path))
    require_harmless(found)
    assert "1 run of 0 recipes" in found.shown
    assert "run.json: damaged" in found.shown


def test_names_of_any_bytes_can_be_written(tmp_path: Path) -> None:
    write_run(tmp_path / "a\udcff\nb")
    write_run(tmp_path / "c", beta_end=0.0)
    text = made(tmp_path)
    assert "a\\udcff\\nb" in parse(text).shown
    text.encode("utf-8")


def test_odd_figures_can_be_drawn(tmp_path: Path) -> None:
    for number, value in enumerate((1e300, -1e99, 1e-320, 0.0)):
        figures = {"validation/a": value, "validation/b": 1e99, "validation/c": 3.0}
        write_run(tmp_path / f"run-{number}", beta_end=number / 100, figures=figures)
    text = made(tmp_path)
    parse(text)
    assert not re.search(r'="[^"]*\b(nan|inf)\b', text)
    assert len(charts(text)) > 5


def test_many_runs_make_a_page_that_opens(tmp_path: Path) -> None:
    """Of long curves, points are left out; colours that come again have other dashes."""
    for number in range(20):
        path = write_run(tmp_path / f"run-{number}", beta_end=number / 100)
        lines = [f'{{"step": {step}, "train/loss": {step}}}\n' for step in range(1, 3000)]
        (path / "metrics.jsonl").write_text("".join(lines))
    text = made(tmp_path)
    assert len(text) < 400_000
    classes = {line.get("class") for line in charts(text)[0].findall(".//polyline")}
    assert len(classes) == 20
    points = (charts(text)[0].findall(".//polyline")[0].get("points") or "").split()
    assert len(points) == 300
