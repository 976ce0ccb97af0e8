"""Line charts as inline SVG, and the style of the report's page: light and dark, phone and desktop, no script."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import Callable

COLOURS = 8
WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 24
MOST_POINTS = 160  # a line; more are averaged, with their extremes drawn as a band
LOG_FROM = 50.0  # largest over smallest from which a positive series is drawn logarithmically

STYLE = """
:root { --paper:#fff; --ink:#1b1f24; --soft:#5c6670; --line:#d9dee3; --card:#f4f6f8; --good:#0a6b3d;
  --c0:#0b62c4; --c1:#c2410c; --c2:#0f7b55; --c3:#9333a8; --c4:#8a6d00; --c5:#b3124d; --c6:#0e7490; --c7:#565f6b; }
@media (prefers-color-scheme: dark) {
  :root { --paper:#14171b; --ink:#e8ebee; --soft:#9aa5b0; --line:#343b43; --card:#1d2228; --good:#5ad19a;
    --c0:#6db3ff; --c1:#ff9d66; --c2:#52d1a0; --c3:#d98cf0; --c4:#e6c54a; --c5:#ff7aa5; --c6:#5cc8e0; --c7:#b4bcc6; } }
* { box-sizing: border-box; }
body { margin:0; background:var(--paper); color:var(--ink); font:16px/1.5 system-ui, sans-serif;
  -webkit-text-size-adjust:100%; }
main { max-width:1200px; margin:0 auto; padding:1rem; }
h1 { font-size:1.6rem; line-height:1.2; overflow-wrap:anywhere; } h2 { font-size:1.2rem; margin:2rem 0 .5rem; }
h3 { font-size:1rem; margin:1.2rem 0 .4rem; } small, .note { color:var(--soft); font-weight:400; }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr)); gap:.6rem; }
.cards div { background:var(--card); border-radius:.5rem; padding:.6rem .8rem; }
.cards b { display:block; font-size:1.25rem; } .cards span { color:var(--soft); font-size:.85rem; }
.charts { display:grid; grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr)); gap:1rem; }
figure { margin:0; background:var(--card); border-radius:.5rem; padding:.6rem; }
figcaption { font-weight:600; font-size:.95rem; overflow-wrap:anywhere; } figcaption small { float:right; }
svg { display:block; width:100%; height:auto; } svg text { fill:var(--soft); font-size:11px; }
.grid { stroke:var(--line); stroke-width:1; } .bad { stroke:var(--c5); stroke-width:2; }
.run { fill:none; stroke-width:1.8; stroke-linejoin:round; vector-effect:non-scaling-stroke; }
.band { stroke:none; opacity:.18; }
.wide { overflow-x:auto; } table { border-collapse:collapse; font-size:.9rem; font-variant-numeric:tabular-nums; }
th, td { padding:.3rem .7rem; border-bottom:1px solid var(--line); text-align:right; white-space:nowrap; }
th:first-child, .left td, .left th { text-align:left; } td.best { color:var(--good); font-weight:700; }
.legend { list-style:none; display:flex; flex-wrap:wrap; gap:.3rem 1.2rem; padding:0; margin:.5rem 0; }
.key { display:inline-block; width:1.4rem; height:.3rem; border-radius:.15rem; margin-right:.4rem;
  vertical-align:middle; }
details { border:1px solid var(--line); border-radius:.5rem; padding:.4rem .8rem; margin:.5rem 0; }
summary { cursor:pointer; font-weight:600; padding:.3rem 0; overflow-wrap:anywhere; }
pre { overflow-x:auto; font-size:.85rem; }
.bar { display:grid; grid-template-columns:minmax(8rem,16rem) 1fr 5rem; gap:.6rem; align-items:center;
  font-size:.9rem; padding:.15rem 0; }
.bar div { background:var(--card); border-radius:.2rem; height:.8rem; }
.bar i { display:block; height:100%; background:var(--c0); border-radius:.2rem; } .bar b { text-align:right; }
""" + "".join(
    f".run.s{i} {{ stroke:var(--c{i}); }} .band.s{i}, .dot.s{i} {{ fill:var(--c{i}); }} "
    f".key.s{i} {{ background:var(--c{i}); }}\n"
    for i in range(COLOURS)
)


@dataclass
class Line:
    name: str
    colour: int
    points: list[tuple[int, float]]  # step, value; NaN where it was not finite


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
    values = [mark * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for mark in marks]
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


def drawn(line: Line, x: Axis, y: Axis) -> str:
    style = f"s{line.colour % COLOURS}"
    finite = [(step, value) for step, value in line.points if math.isfinite(value)]
    means, band = thinned(finite)
    out = ""
    if band:
        edge = [(s, high) for s, _, high in band] + [(s, low) for s, low, _ in reversed(band)]
        out += f'<path class="band {style}" d="{path(edge, x, y)}Z"/>'
    if len(means) == 1:
        out += f'<circle class="dot {style}" cx="{x(means[0][0]):.1f}" cy="{y(means[0][1]):.1f}" r="3.5"/>'
    elif means:
        out += f'<path class="run {style}" d="{path(means, x, y)}"><title>{escape(line.name)}</title></path>'
    for step, value in line.points:
        if not math.isfinite(value):
            at = f"{x(step):.1f}"
            out += f'<line class="bad" x1="{at}" x2="{at}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM - 8}">'
            out += f"<title>{escape(line.name)}: not finite at step {step}</title></line>"
    return out


def step_text(step: float) -> str:
    return f"{step / 1000:g}k" if step >= 10_000 else f"{step:g}"


def figure(name: str, lines: list[Line], text: Callable[[float], str]) -> str:
    """One measured name over the steps of all runs. Empty where no run has a finite value."""
    values = [value for line in lines for _, value in line.points if math.isfinite(value)]
    if not values:
        return ""
    steps = [step for line in lines for step, _ in line.points]
    y = value_axis(values)
    x = Axis(min(steps), max(max(steps), min(steps) + 1), LEFT, WIDTH - RIGHT)
    marks = decades(y.low, y.high) if y.logarithmic else ticks(y.low, y.high)
    grid = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(mark):.1f}" y2="{y(mark):.1f}"/>'
        f'<text x="{LEFT - 5}" y="{y(mark) + 4:.1f}" text-anchor="end">{escape(text(mark))}</text>'
        for mark in marks
    )
    for mark in ticks(x.low, x.high, 4):
        if mark == int(mark):
            grid += f'<text x="{x(mark):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{step_text(mark)}</text>'
    curves = "".join(drawn(line, x, y) for line in lines)
    last = next((v for line in lines for _, v in reversed(line.points) if math.isfinite(v)), 0.0)
    caption = f"{escape(name)} <small>{escape(text(last))}</small>" if len(lines) == 1 else escape(name)
    caption += " <small>log</small>" if y.logarithmic else ""
    return (
        f'<figure><figcaption>{caption}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(name, quote=True)} over steps">{grid}{curves}</svg></figure>'
    )
