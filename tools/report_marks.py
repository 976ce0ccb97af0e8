"""Charts of single things: marks by what they cost and what they are worth, and values with their intervals, as inline SVG."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Callable

import report_charts as charts
from report_charts import BOTTOM, COLOURS, HEIGHT, LEFT, RIGHT, TOP, WIDTH

ROW, MOST_ROWS = 30, 16  # of a chart of intervals: units a row, rows a chart
CHARACTER = 6.2  # units, of 11 px text
NEAR = 14  # units, between marks that have one label
SHAPES = ("circle", "square", "diamond")


@dataclass
class Mark:
    x: float
    y: float
    name: str
    colour: int
    front: bool = False  # nothing else is both cheaper and better
    shape: str = SHAPES[0]
    label: str = ""  # beside it, of a few characters
    line: str = ""  # which of its colour's fronts it is on


@dataclass
class Interval:
    name: str
    colour: int
    value: float
    low: float | None = None
    high: float | None = None
    what: str = "95 %"  # lies between them


@dataclass
class Missing:
    """What was tried and has no value."""

    name: str
    why: str


def best_of(points: list[tuple[float, float]], more_is_better: bool) -> list[bool]:
    """Which of (cost, quality) no other one beats in one and equals in the other."""
    def beaten(i: int) -> bool:
        cost, quality = points[i]
        return any(c <= cost and (q >= quality if more_is_better else q <= quality) and (c, q) != (cost, quality) for c, q in points)

    return [not beaten(i) for i in range(len(points))]


def drawn_mark(mark: Mark, at_x: float, at_y: float, says: str) -> str:
    style, r = f"s{mark.colour % COLOURS}", 5.0
    title = f"<title>{escape(says)}</title>"
    if mark.shape == "square":
        out = f'<rect class="dot {style}" x="{at_x - 4:.1f}" y="{at_y - 4:.1f}" width="8" height="8">{title}</rect>'
    elif mark.shape == "diamond":
        out = f'<path class="dot {style}" d="M{at_x:.1f},{at_y - r:.1f}l{r},{r}l-{r},{r}l-{r},-{r}Z">{title}</path>'
    else:
        out = f'<circle class="dot {style}" cx="{at_x:.1f}" cy="{at_y:.1f}" r="4">{title}</circle>'
    if mark.front:
        out += f'<circle class="run {style}" cx="{at_x:.1f}" cy="{at_y:.1f}" r="7.5"/>'
    return out


def drawn_labels(places: list[tuple[float, float, str]]) -> str:
    """Those of marks that stand on or beside each other are one text."""
    groups: list[tuple[float, float, list[str]]] = []
    for at_x, at_y, label in places:
        near = next((group for group in groups if abs(group[0] - at_x) < NEAR and abs(group[1] - at_y) < NEAR), None)
        if near is None:
            groups.append((at_x, at_y, [label]))
        elif label not in near[2]:
            near[2].append(label)
    out = ""
    for at_x, at_y, names in groups:
        text = ", ".join(names)
        left = at_x + 9 + len(text) * CHARACTER > WIDTH
        x, anchor = (at_x - 9, "end") if left else (at_x + 9, "start")
        out += f'<text class="over" x="{x:.1f}" y="{max(at_y - 4, 10):.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    return out


def _axis(values: list[float], start: float, end: float) -> charts.Axis:
    axis = charts.value_axis(values)
    # Room for a ring: no mark stands on an edge.
    margin = 0.05 * (axis.high - axis.low)
    return charts.Axis(axis.low - margin, axis.high + margin, start, end, axis.logarithmic)


def _marks_of(axis: charts.Axis, wanted: int = 4) -> list[float]:
    return charts.decades(axis.low, axis.high) if axis.logarithmic else charts.ticks(axis.low, axis.high, wanted)


def scatter(title: str, marks: list[Mark], x_text: Callable[[float], str], y_text: Callable[[float], str], over: str) -> str:
    """Each mark where its cost and its worth are; those of one front of one colour are joined. Empty without marks."""
    if not marks:
        return ""
    x = _axis([mark.x for mark in marks], LEFT, WIDTH - RIGHT)
    y = _axis([mark.y for mark in marks], HEIGHT - BOTTOM, TOP)
    out = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(at):.1f}" y2="{y(at):.1f}"/>'
        f'<text x="{LEFT - 5}" y="{y(at) + 4:.1f}" text-anchor="end">{escape(y_text(at))}</text>'
        for at in _marks_of(y)
    )
    right = -1.0
    for at in _marks_of(x):
        text = x_text(at)
        half = len(text) * CHARACTER / 2
        middle = min(x(at), WIDTH - 2 - half)
        if middle - half < right + 6:  # it would run into the one before it
            continue
        right = middle + half
        out += f'<line class="grid" x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 4}"/>'
        out += f'<text x="{middle:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(text)}</text>'
    for colour, line in dict.fromkeys((mark.colour, mark.line) for mark in marks):
        front = sorted((mark.x, mark.y) for mark in marks if mark.front and (mark.colour, mark.line) == (colour, line))
        if len(front) > 1:
            out += f'<path class="run thin s{colour % COLOURS}" d="{charts.path(front, x, y)}"/>'
    for mark in marks:
        out += drawn_mark(mark, x(mark.x), y(mark.y), f"{mark.name}: {y_text(mark.y)} at {x_text(mark.x)}")
    out += drawn_labels([(x(mark.x), y(mark.y), mark.label) for mark in marks if mark.label])
    scales = "".join(f" <small>{name} log</small>" for name, axis in (("across", x), ("up", y)) if axis.logarithmic)
    return (f'<figure><figcaption>{escape(title)}{scales}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(title, quote=True)} over {escape(over, quote=True)}">{out}</svg></figure>')  # fmt: skip


def short(name: str, room: float) -> str:
    """The end of a path says which module it is."""
    most = max(4, int(room / CHARACTER))
    return name if len(name) <= most else "…" + name[1 - most :]


def _row(interval: Interval, top: float, x: charts.Axis, text: Callable[[float], str], bars: bool) -> str:
    style, y = f"s{interval.colour % COLOURS}", top + 20
    value = text(interval.value)
    name = short(interval.name, WIDTH - 24 - len(value) * CHARACTER)
    out = f'<text class="over" x="6" y="{top + 11:.1f}">{escape(name)}</text>'
    out += f'<text class="over" x="{WIDTH - 6}" y="{top + 11:.1f}" text-anchor="end">{escape(value)}</text>'
    if bars:
        out += f'<path class="run thick {style}" d="M{x(0):.1f},{y}H{x(interval.value):.1f}"/>'
    says = f"{interval.name}: {value}"
    if interval.low is not None and interval.high is not None:
        says += f", {interval.what} from {text(interval.low)} to {text(interval.high)}"
        a, b = x(interval.low), x(interval.high)
        out += f'<path class="run {style}" d="M{a:.1f},{y - 3}v6m0,-3H{b:.1f}m0,-3v6"/>'
    return out + f'<circle class="dot {style}" cx="{x(interval.value):.1f}" cy="{y}" r="3.5"><title>{escape(says)}</title></circle>'


def _missing_row(missing: Missing, top: float) -> str:
    """Below a line, without a place on the axis: a cross, and the word for it."""
    name = short(missing.name, WIDTH - 40 - len(missing.why) * CHARACTER)
    return (f'<text x="6" y="{top + 13:.1f}">{escape(name)}</text>'
            f'<path class="bad" d="M{WIDTH - 20},{top + 5}l9,9m0,-9l-9,9"/>'
            f'<text x="{WIDTH - 26}" y="{top + 13:.1f}" text-anchor="end">{escape(missing.why)}</text>')  # fmt: skip


def intervals(title: str, rows: list[Interval], missing: list[Missing], text: Callable[[float], str], bars: bool = False) -> str:
    """A row each, over one axis that has its zero marked, from which `bars` go; what has no value stands apart at the bottom."""
    if not rows and not missing:
        return ""
    ends = [value for row in rows for value in (row.value, row.low, row.high) if value is not None] or [0.0]
    low, high = min(0.0, *ends), max(0.0, *ends)
    margin = 0.04 * (high - low) or 1.0
    x = charts.Axis(low - margin, high + margin, 14, WIDTH - 14)
    bottom = len(rows) * ROW
    height = bottom + (20 if rows else 0) + len(missing) * 20 + (8 if missing else 0)
    out = ""
    if rows:
        right = -1.0
        for at in charts.ticks(x.low, x.high, 4):
            half = len(text(at)) * CHARACTER / 2
            middle = max(half + 2, min(x(at), WIDTH - 2 - half))
            out += f'<line class="{"zero" if at == 0 else "grid"}" x1="{x(at):.1f}" x2="{x(at):.1f}" y1="0" y2="{bottom}"/>'
            if middle - half >= right + 6:
                right = middle + half
                out += f'<text x="{middle:.1f}" y="{bottom + 14}" text-anchor="middle">{escape(text(at))}</text>'
    out += "".join(_row(row, number * ROW, x, text, bars) for number, row in enumerate(rows))
    if missing:
        top = bottom + (24 if rows else 4)
        out += f'<line class="grid" x1="0" x2="{WIDTH}" y1="{top}" y2="{top}"/>' if rows else ""
        out += "".join(_missing_row(one, top + number * 20) for number, one in enumerate(missing))
    return (f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {height}" role="img" '
            f'aria-label="{escape(title, quote=True)}">{out}</svg></figure>')  # fmt: skip


def legend(keys: list[tuple[int, str]]) -> str:
    items = "".join(f'<li><i class="key s{colour % COLOURS}"></i>{escape(name)}</li>' for colour, name in keys)
    return f'<ul class="legend">{items}</ul>'


def cards(facts: list[tuple[str, str]]) -> str:
    inside = "".join(f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for what, value in facts)
    return f'<section class="cards">{inside}</section>'


def notes(lines: list[str]) -> str:
    return "".join(f'<p class="note">{escape(line)}</p>' for line in lines)
