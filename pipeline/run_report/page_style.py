"""The style and the script of a report's page: constants, so that their hashes can be named.

The page's policy lets nothing run but this script, and fetches nothing (``page``).
"""

from pipeline.run_report.charts.colours import DARK_COLOURS, LIGHT_COLOURS


def _variables(colours: tuple[str, ...]) -> str:
    return "; ".join(f"--c{number}: {colour}" for number, colour in enumerate(colours))


_CLASSES = "\n".join(
    f".c{number} {{ stroke: var(--c{number}) }} circle.c{number} {{ fill: var(--c{number}) }}"
    for number in range(len(LIGHT_COLOURS))
)

STYLE = f"""
:root {{
  color-scheme: light dark;
  --page: #ffffff; --text: #1f2328; --faint: #59636e; --line: #d1d9e0; --mark: #fff3c4;
  --panel: #f6f8fa; {_variables(LIGHT_COLOURS)}
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --page: #0d1117; --text: #e6edf3; --faint: #9198a1; --line: #3d444d; --mark: #4b3a00;
    --panel: #151b23; {_variables(DARK_COLOURS)}
  }}
}}
* {{ box-sizing: border-box }}
body {{
  font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
  max-width: 90rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere
}}
h1 {{ font-size: 1.5rem; line-height: 1.2 }}
h2 {{ font-size: 1.2rem; margin-top: 2rem }}
h3 {{ font-size: 1rem }}
p, .note {{ max-width: 60rem }}
.note {{ border-left: 4px solid var(--c1); background: var(--panel); padding: .5rem .8rem;
  margin: .6rem 0 }}
.scroll {{ overflow-x: auto; max-width: 100% }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap }}
th {{ color: var(--faint); font-weight: 600 }}
.name {{ text-align: left; white-space: normal; min-width: 8rem; max-width: 22rem }}
td.mark {{ background: var(--mark); font-weight: 600 }}
.legend {{ display: flex; flex-wrap: wrap; gap: .4rem; position: sticky; top: 0; z-index: 1;
  background: var(--page); padding: .5rem 0; max-height: 30vh; overflow-y: auto }}
.legend button {{ font: inherit; font-size: .85rem; color: inherit; background: var(--panel);
  border: 1px solid var(--line); border-radius: 1rem; padding: .25rem .7rem; cursor: pointer;
  max-width: 100%; min-height: 2rem; text-align: left }}
.legend button[aria-pressed="false"] {{ opacity: .45; text-decoration: line-through }}
.swatch {{ width: 22px; height: 8px; margin-right: .4rem; display: inline-block }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr));
  gap: 1rem }}
figure {{ margin: 0; min-width: 0; position: relative; border: 1px solid var(--line);
  border-radius: .5rem; padding: .5rem }}
figcaption {{ font-weight: 600 }}
figcaption small {{ font-weight: 400; color: var(--faint) }}
figure svg {{ display: block; width: 100%; max-width: 100%; height: auto; touch-action: pan-y }}
svg text {{ font-size: 13px; fill: var(--faint) }}
.grid {{ stroke: var(--line); stroke-width: .7 }}
.reference {{ stroke: var(--faint); stroke-width: 1.2; stroke-dasharray: 6 4 }}
.curve {{ stroke-width: 2; stroke-linejoin: round }}
polyline.curve {{ fill: none }}
.faint {{ stroke-width: 1; opacity: .4 }}
.off, .cursor {{ display: none }}
.cursor.on {{ display: block; stroke: var(--faint); stroke-width: 1 }}
.d1 {{ stroke-dasharray: 7 4 }} .d2 {{ stroke-dasharray: 2 3 }} .d3 {{ stroke-dasharray: 9 3 2 3 }}
{_CLASSES}
.tip {{ position: absolute; top: 2.2rem; right: .6rem; max-width: 85%; pointer-events: none;
  background: var(--panel); border: 1px solid var(--line); border-radius: .4rem;
  padding: .3rem .5rem; font-size: .78rem; line-height: 1.35; white-space: pre-line; opacity: .94 }}
/* Charts shrink with the screen, their texts should not. */
@media (max-width: 34rem) {{ svg text {{ font-size: 15px }} }}
summary {{ cursor: pointer; padding: .3rem 0 }}
code {{ font-size: .85em }}
@media print {{
  :root {{ --page: #ffffff; --text: #000000; --faint: #444444; --line: #bbbbbb; --panel: #ffffff;
    --mark: #fff3c4; {_variables(LIGHT_COLOURS)} }}
  body {{ font-size: 10pt; padding: 0; max-width: none }}
  .legend {{ position: static; max-height: none; overflow: visible }}
  .charts {{ grid-template-columns: 1fr 1fr }}
  figure, tr {{ break-inside: avoid }}
  .scroll {{ overflow: visible }}
  th, td {{ white-space: normal; padding: .15rem .3rem }}
}}
"""

# Whatever a run is called is set as textContent, which is never read as HTML.
SCRIPT = """
"use strict";
for (const button of document.querySelectorAll(".legend button")) {
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") === "false";
    button.setAttribute("aria-pressed", String(shown));
    for (const curve of document.querySelectorAll(".curve[data-group]")) {
      if (curve.dataset.group === button.dataset.group) curve.classList.toggle("off", !shown);
    }
  });
}
const MOST_NAMED = 12;
const numbers = (text) => text.split(" ").map(Number);
const shortText = (value) => String(Number(value.toPrecision(4)));
for (const svg of document.querySelectorAll("figure svg[data-box]")) {
  const [left, top, right, bottom] = numbers(svg.dataset.box);
  const [xLow, xHigh] = numbers(svg.dataset.x);
  const [yLow, yHigh] = numbers(svg.dataset.y.replace(/ [a-z]+$/, ""));
  const isLog = svg.dataset.y.endsWith(" log");
  const cursor = svg.querySelector(".cursor");
  const tip = document.createElement("div");
  tip.className = "tip off";
  tip.setAttribute("aria-hidden", "true");
  svg.parentElement.append(tip);
  const valueAt = (y) => {
    const share = (bottom - y) / (bottom - top);
    return isLog ? yLow * Math.pow(yHigh / yLow, share) : yLow + share * (yHigh - yLow);
  };
  const pointsOf = (curve) => curve.points
    ? Array.from(curve.points, (point) => [point.x, point.y])
    : [[Number(curve.getAttribute("cx")), Number(curve.getAttribute("cy"))]];
  const curves = Array.from(svg.querySelectorAll(".curve"), (curve) => [curve, pointsOf(curve)]);
  const hide = () => { tip.classList.add("off"); cursor.classList.remove("on"); };
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const found = [];
    for (const [curve, points] of curves) {
      if (curve.classList.contains("off")) continue;
      let best = points[0];
      for (const point of points) {
        if (Math.abs(point[0] - x) < Math.abs(best[0] - x)) best = point;
      }
      found.push([best, curve]);
    }
    if (!found.length) { hide(); return; }
    const nearest = found.map(([point]) => point[0])
      .reduce((one, other) => Math.abs(other - x) < Math.abs(one - x) ? other : one);
    const shown = found.filter(([point]) => Math.abs(point[0] - nearest) < 1.5)
      .sort((one, other) => one[0][1] - other[0][1]);
    const at = xLow + (nearest - left) / (right - left) * (xHigh - xLow);
    const lines = shown.slice(0, MOST_NAMED)
      .map(([point, curve]) => curve.dataset.label + ": " + shortText(valueAt(point[1])));
    if (shown.length > MOST_NAMED) lines.push("and " + (shown.length - MOST_NAMED) + " more");
    tip.textContent = ["at " + shortText(at), ...lines].join("\\n");
    tip.classList.remove("off");
    tip.style.setProperty("right", x > (left + right) / 2 ? "auto" : ".6rem");
    tip.style.setProperty("left", x > (left + right) / 2 ? ".6rem" : "auto");
    cursor.setAttribute("x1", nearest);
    cursor.setAttribute("x2", nearest);
    cursor.classList.add("on");
  });
}
addEventListener("beforeprint", () => {
  for (const each of document.querySelectorAll("details")) each.open = true;
});
"""
