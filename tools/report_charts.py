"""Line charts as inline SVG, and the style of the report's page: light and dark, phone and desktop, no script."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import Callable

COLOURS = 8
WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 60, 18, 10, 24
MOST_POINTS = 160  # a line; more are averaged, with their extremes drawn as a band
FEW_POINTS = 12  # so few are marked each
STEPS = "steps"  # what charts are over, where nothing else is said
LOG_FROM = 50.0  # largest over smallest from which a positive series is drawn logarithmically

STYLE = """
:root { --paper:#fff; --ink:#1b1f24; --soft:#5c6670; --line:#d9dee3; --card:#f4f6f8; --good:#0a6b3d;
  --c0:#0b62c4; --c1:#c2410c; --c2:#0f7b55; --c3:#9333a8; --c4:#8a6d00; --c5:#b3124d; --c6:#0e7490; --c7:#565f6b; }
@media screen and (prefers-color-scheme: dark) { /* paper is light */
  :root { --paper:#14171b; --ink:#e8ebee; --soft:#9aa5b0; --line:#343b43; --card:#1d2228; --good:#5ad19a;
    --c0:#6db3ff; --c1:#ff9d66; --c2:#52d1a0; --c3:#d98cf0; --c4:#e6c54a; --c5:#ff7aa5; --c6:#5cc8e0; --c7:#b4bcc6; } }
* { box-sizing: border-box; }
body { margin:0; background:var(--paper); color:var(--ink); font:16px/1.5 system-ui, sans-serif;
  -webkit-text-size-adjust:100%; }
main { max-width:1200px; margin:0 auto; padding:1rem; }
h1 { font-size:1.6rem; line-height:1.2; overflow-wrap:anywhere; } h2 { font-size:1.2rem; margin:2rem 0 .5rem; }
h3 { font-size:1rem; margin:1.2rem 0 .4rem; } small, .note { color:var(--soft); font-weight:400; } .note { overflow-wrap:anywhere; }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr)); gap:.6rem; }
.cards div { background:var(--card); border-radius:.5rem; padding:.6rem .8rem; }
.cards b { display:block; font-size:1.25rem; overflow-wrap:anywhere; } .cards span { color:var(--soft); font-size:.85rem; }
.charts > * { min-width:0; } .charts { display:grid; grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr)); gap:1rem; align-items:start; }
.charts.wide { grid-template-columns:minmax(0,36rem); }
figure { margin:0; background:var(--card); border-radius:.5rem; padding:.6rem; }
figcaption { font-weight:600; font-size:.95rem; overflow-wrap:anywhere; } figcaption small { font-weight:400; margin-left:.6rem; }
svg { display:block; width:100%; height:auto; } svg text { fill:var(--soft); font-size:11px; } svg .over { paint-order:stroke; stroke:var(--card); stroke-width:4px; }
.grid { stroke:var(--line); stroke-width:1; } .bad { stroke:var(--c5); stroke-width:2; }
.run { fill:none; stroke-width:1.8; stroke-linejoin:round; vector-effect:non-scaling-stroke; }
.band { stroke:none; opacity:.18; } .thin { stroke-width:1; } .thick { stroke-width:6; opacity:.55; } .zero { stroke:var(--soft); stroke-width:1.2; } path.bad { fill:none; }
table { border-collapse:collapse; max-width:100%; font-size:.9rem; font-variant-numeric:tabular-nums; }
th, td { padding:.3rem .7rem; border-bottom:1px solid var(--line); text-align:right; } tr > :first-child, tr > :last-child { overflow-wrap:anywhere; }
th small, td small { white-space:nowrap; } th:first-child, .left td, .left th { text-align:left; } .left th:first-child { min-width:5.5rem; } .best { color:var(--good); font-weight:700; }
.legend li { overflow-wrap:anywhere; min-width:0; } .legend { list-style:none; display:flex; flex-wrap:wrap; gap:.3rem 1.2rem; padding:0; margin:.5rem 0; }
.key { display:inline-block; width:1.4rem; height:.3rem; border-radius:.15rem; margin-right:.4rem;
  vertical-align:middle; }
details { border:1px solid var(--line); border-radius:.5rem; padding:.4rem .8rem; margin:.5rem 0; }
summary { cursor:pointer; font-weight:600; padding:.3rem 0; overflow-wrap:anywhere; }
pre { white-space:pre-wrap; overflow-wrap:anywhere; font-size:.85rem; }
.bar { display:grid; grid-template-columns:minmax(0,16rem) minmax(2rem,1fr) 5rem; overflow-wrap:anywhere; gap:.6rem; align-items:center;
  font-size:.9rem; padding:.15rem 0; }
.bar div { background:var(--card); border-radius:.2rem; height:.8rem; }
.bar i { display:block; height:100%; background:var(--c0); border-radius:.2rem; } .bar b { text-align:right; }
@media (max-width:60rem) { /* a row of a table becomes a block, each value beside its column's name */
  table, tbody, tr, tr > * { display:block; width:100%; } tr:first-child { display:none; }
  tr { border-bottom:1px solid var(--line); padding:.4rem 0; } tr > * { border:0; padding:.1rem 0; text-align:left; }
  th { font-size:1rem; } td { display:flex; justify-content:space-between; gap:1rem; }
  .left td { display:inline-flex; width:auto; gap:.4rem; margin-right:1.2rem; max-width:100%; }
  td > span { min-width:0; overflow-wrap:anywhere; text-align:right; }
  td::before { content:attr(data-label); color:var(--soft); flex:none; } }
@media print { :root { color-scheme:light; } main { max-width:none; } figure, tr { break-inside:avoid; } }
""" + "".join(
    f".run.s{i} {{ stroke:var(--c{i}); }} .band.s{i}, .dot.s{i} {{ fill:var(--c{i}); }} "
    f".key.s{i} {{ background:var(--c{i}); }}\n"
    for i in range(COLOURS)
)


@dataclass
class Line:
    name: str
    colour: int
    points: list[tuple[float, float]]  # step, value; NaN where it was not finite


@dataclass
class Axis:
    low: float
    high: float
    start: float  # in the picture
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        value = math.log10(value) if self.logarithmic else value
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers between low and high."""
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def decades(low: float, high: float) -> list[float]:
    """Of a logarithmic axis; low and high are exponents. Under two decades 2 and 5 are marked as well."""
    marks = (1.0,) if high - low >= 2 else (1.0, 2.0, 5.0)
    powers = range(max(math.floor(low), -307), min(math.ceil(high), 307) + 1)  # beyond these a power is 0 or none
    values = [mark * 10.0**power for power in powers for mark in marks]
    inside = [value for value in values if low - 1e-9 <= math.log10(value) <= high + 1e-9]
    return inside[:: max(1, len(inside) // 5)]


def value_axis(values: list[float]) -> Axis:
    low, high = min(values), max(values)
    logarithmic = low > 0 and high / low > LOG_FROM
    if logarithmic:
        low, high = math.log10(low), math.log10(high)
    margin = 0.04 * (high - low) or abs(high) * 0.05 or 1.0
    return Axis(low - margin, high + margin, HEIGHT - BOTTOM, TOP, logarithmic)


def thinned(points: list[tuple[int, float]]) -> tuple[list[tuple[float, float]], list[tuple[float, float, float]]]:
    """At most MOST_POINTS means, and the extremes that went into each; no band where nothing was averaged."""
    if len(points) <= MOST_POINTS:
        return [(float(step), value) for step, value in points], []
    means, band = [], []
    for i in range(MOST_POINTS):
        part = points[i * len(points) // MOST_POINTS : (i + 1) * len(points) // MOST_POINTS]
        values = [value for _, value in part]
        step = sum(step for step, _ in part) / len(part)
        means.append((step, sum(values) / len(values)))
        band.append((step, min(values), max(values)))
    return means, band


def path(points: list[tuple[float, float]], x: Axis, y: Axis) -> str:
    return "M" + "L".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)


def pieces(points: list[tuple[int, float]]) -> list[list[tuple[int, float]]]:
    """Runs of finite values: what lies on both sides of one that was not is not joined."""
    out: list[list[tuple[int, float]]] = [[]]
    for step, value in points:
        if math.isfinite(value):
            out[-1].append((step, value))
        elif out[-1]:
            out.append([])
    return [piece for piece in out if piece]


def drawn_piece(name: str, style: str, piece: list[tuple[float, float]], x: Axis, y: Axis, over: str) -> str:
    means, band = thinned(piece)
    out = ""
    if band:
        edge = [(s, high) for s, _, high in band] + [(s, low) for s, low, _ in reversed(band)]
        out += f'<path class="band {style}" d="{path(edge, x, y)}Z"/>'
    if len(means) > 1:
        out += f'<path class="run {style}" d="{path(means, x, y)}"><title>{escape(name)}</title></path>'
    if len(means) <= FEW_POINTS:
        radius = 4.5 if len(means) == 1 else 2.5
        for step, value in means:
            at = f'cx="{x(step):.1f}" cy="{y(value):.1f}" r="{radius}"'
            out += f'<circle class="dot {style}" {at}><title>{escape(name)}: {escape(at_place(step, over))}</title></circle>'
    return out


def at_place(place: float, over: str) -> str:
    return f"step {place:g}" if over == STEPS else f"{place:g} {over}"


def drawn(line: Line, x: Axis, y: Axis, over: str) -> str:
    style = f"s{line.colour % COLOURS}"
    out = "".join(drawn_piece(line.name, style, piece, x, y, over) for piece in pieces(line.points))
    for step, value in line.points:
        if not math.isfinite(value):
            at = f"{x(step):.1f}"
            out += f'<line class="bad" x1="{at}" x2="{at}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM - 8}">'
            out += f"<title>{escape(line.name)}: not finite at {escape(at_place(step, over))}</title></line>"
    return out


def step_axis(steps: list[float]) -> Axis:
    low, high = min(steps), max(steps)
    if low == high:  # one step stands in the middle, clear of the edges
        low, high = low - 1, high + 1
    return Axis(low, high, LEFT, WIDTH - RIGHT)


def step_text(step: float) -> str:
    return f"{step / 1000:g}k" if step >= 10_000 else f"{step:g}"


def figure(name: str, lines: list[Line], text: Callable[[float], str], over: str = STEPS) -> str:
    """One measured name over the steps of all runs, or over something else. Empty where no run has a finite value."""
    values = [value for line in lines for _, value in line.points if math.isfinite(value)]
    if not values:
        return ""
    steps = [step for line in lines for step, _ in line.points]
    y = value_axis(values)
    x = step_axis(steps)
    marks = decades(y.low, y.high) if y.logarithmic else ticks(y.low, y.high)
    grid = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(mark):.1f}" y2="{y(mark):.1f}"/>'
        f'<text x="{LEFT - 5}" y="{y(mark) + 4:.1f}" text-anchor="end">{escape(text(mark))}</text>'
        for mark in marks
    )
    for mark in ticks(x.low, x.high, 4) if min(steps) < max(steps) else [steps[0]]:
        if over != STEPS or mark == int(mark):
            anchor = "end" if x(mark) > WIDTH - RIGHT - 12 else "middle"
            grid += f'<text x="{x(mark):.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{step_text(mark)}</text>'
    curves = "".join(drawn(line, x, y, over) for line in lines)
    last = next((v for line in lines for _, v in reversed(line.points) if math.isfinite(v)), 0.0)
    caption = f"{escape(name)} <small>{escape(text(last))}</small>" if len(lines) == 1 else escape(name)
    caption += " <small>log</small>" if y.logarithmic else ""
    return (
        f'<figure><figcaption>{caption}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(name, quote=True)} over {escape(over, quote=True)}">{grid}{curves}</svg></figure>'
    )


def document(title: str, body: str) -> str:
    """A whole page that needs nothing else; `body` is HTML, `title` is text."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{body}
</main>
</body>
</html>
"""
