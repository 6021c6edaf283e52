"""The page as a browser draws it: nothing missing, nothing cut off, everything legible.

The figures are of runs that were trained, and of made-up ones with long names and curves.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.support.browser import open_browser
from tests.support.command_line import done
from tests.support.html_pages import parse
from tests.support.run_directories import write_run
from tests.support.train_configs import tiny_train_config
from tests.support.train_runs import run as train_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.slow
_SCREENS = [(width, scheme) for width in (390, 1440) for scheme in ("light", "dark")]
_LONG = "a-variant-with-a-name-that-is-longer-than-a-telephone-is-wide" * 2
_GATES = {f"validation/output_gate_layer_{layer:02}": layer / 10 for layer in range(5)}
_CONTRAST = """
() => {
  const rgb = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = (colour) => {
    const [red, green, blue] = colour.slice(0, 3).map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : Math.pow((share + 0.055) / 1.055, 2.4);
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = rgb(getComputedStyle(each).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const ratio = (one, other) => {
    const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const found = [];
  for (const each of document.body.querySelectorAll("*")) {
    const style = getComputedStyle(each);
    const isText = Array.from(each.childNodes)
      .some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
    const isCurve = each.matches(".curve:not(.faint)");
    if (!(isText || isCurve) || each.matches("script, title")) continue;
    const colour = isCurve ? style.stroke : each.closest("svg") ? style.fill : style.color;
    found.push([isCurve ? "curve" : "text", each.textContent.trim().slice(0, 40),
      ratio(rgb(colour), behind(each))]);
  }
  return found;
}
"""
_CUT_OFF = """
() => {
  const found = [];
  for (const text of document.querySelectorAll("figure svg text")) {
    const own = text.getBoundingClientRect();
    const box = text.closest("svg").getBoundingClientRect();
    if (own.left < box.left - 0.5 || own.right > box.right + 0.5
        || own.top < box.top - 0.5 || own.bottom > box.bottom + 0.5) found.push(text.textContent);
  }
  return found;
}
"""
_COVERED = """
() => {
  const found = [];
  for (const svg of document.querySelectorAll("figure svg")) {
    const texts = Array.from(svg.querySelectorAll("text"), (text) =>
      [text.textContent, text.getBoundingClientRect()]);
    texts.forEach(([name, one], number) => {
      for (const [other, two] of texts.slice(number + 1)) {
        const isBeside = one.right <= two.left || two.right <= one.left;
        const middles = Math.abs(one.top + one.bottom - two.top - two.bottom) / 2;
        if (!isBeside && middles < 0.6 * one.height) found.push([name, other]);
      }
    });
  }
  return found;
}
"""
_TEXT_HEIGHT = """
() => Array.from(document.querySelectorAll("figure svg text"), (text) =>
  parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a)
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, tiny_cache: Path) -> Path:
    root = tmp_path_factory.mktemp("browser")
    for seed in range(2):
        config = tiny_train_config(max_steps=4, seed=seed, report_to=(), eval_steps=1)
        train_run(config, tiny_cache, root / f"runs/trained/seed-{seed}")
        write_run(root / f"runs/{_LONG}/seed-{seed}", seed=seed, loss=4.0 + seed / 5)
    write_run(root / "runs/<b>broken</b>", beta_end=0.0, steps=3, is_finished=False)
    write_run(root / "runs/hybrid", figures=_GATES, loss=300.0, beta_start=0.0)
    done("report", root / "runs", "--out", root / "report")
    return root / "report/index.html"


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with open_browser() as found:
        yield found


@pytest.fixture(scope="module", params=_SCREENS, ids="{0[0]}-{0[1]}".format)
def page(request: pytest.FixtureRequest, browser: "Browser", report: Path) -> "Iterator[Page]":
    """The page in one width and colour scheme; nothing that it said to the console is left."""
    width, scheme = request.param
    address = report.as_uri()
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    opened = context.new_page()
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda each: said.append(each.url) if each.url != address else None)
    opened.goto(address)
    yield opened
    context.close()
    assert said == []


def test_everything_is_shown(page: "Page", report: Path) -> None:
    shown = " ".join(page.locator("body").inner_text().split())
    for text in ("Results on cache", "<b>broken</b>", _LONG, "Curves", "Cost of a run"):
        assert text in shown
    assert "2 (seeds 0, 1)" in shown
    page.locator("summary").first.click()
    assert page.locator("details table").first.is_visible()
    assert page.locator("h1").inner_text() in parse(report.read_text()).shown


def test_nothing_is_wider_than_the_screen(page: "Page") -> None:
    for each in page.locator("summary").all():
        each.evaluate("summary => { summary.parentElement.open = true }")
    widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1]


def test_texts_and_curves_stand_out(page: "Page") -> None:
    found: list[tuple[str, str, float]] = page.evaluate(_CONTRAST)
    assert {kind for kind, _, _ in found} == {"text", "curve"}
    least = {"text": 4.5, "curve": 3.0}  # WCAG 2, success criteria 1.4.3 and 1.4.11
    assert [each for each in found if each[2] < least[each[0]]] == []


def test_no_text_of_a_chart_is_cut_off_covered_or_tiny(page: "Page") -> None:
    assert page.evaluate(_CUT_OFF) == []
    assert page.evaluate(_COVERED) == []
    assert min(page.evaluate(_TEXT_HEIGHT)) >= 10  # pixels


def test_curves_are_drawn_and_can_be_hidden(page: "Page") -> None:
    figure = page.locator("figure").first
    curve = figure.locator(".curve[data-group='0']:not(.faint)").first
    colour = curve.evaluate("curve => getComputedStyle(curve).stroke")
    assert num_pixels(figure, colour) > 20
    button = page.locator(".legend button").first
    button.click()
    assert num_pixels(figure, colour) == 0
    button.click()
    assert num_pixels(figure, colour) > 20


def test_a_chart_shows_its_figures_where_it_is_pointed_at(page: "Page") -> None:
    figure = page.locator("figure").first
    figure.scroll_into_view_if_needed()
    svg: Any = figure.locator("svg").bounding_box()
    tip = figure.locator(".tip")
    assert not tip.is_visible()
    page.mouse.move(svg["x"] + svg["width"] * 0.6, svg["y"] + svg["height"] * 0.6)
    assert tip.inner_text().startswith("at ")
    box: Any = tip.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= page.evaluate("innerWidth")
    page.mouse.move(0, 0)
    assert not tip.is_visible()


def num_pixels(element: "Locator", colour: str) -> int:
    """How many pixels of ``element`` have ``colour``, written as "rgb(1, 2, 3)"."""
    from matplotlib.image import imread

    wanted = [int(part) for part in colour.strip("rgb()").split(",")]
    picture = np.rint(imread(io.BytesIO(element.screenshot()), format="png")[..., :3] * 255)
    return int((np.abs(picture - wanted) <= 2).all(axis=-1).sum())
