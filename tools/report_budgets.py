#!/usr/bin/env python3
"""report_budgets.py CURVE.json [--output FILE]: what budgets buy, as one HTML page that needs nothing else.

CURVE.json is what `limbeck quantize --budgets 3,4,5,6 ... --json CURVE.json` writes: the curve as pictures, the table of
it, and the format of each module within each budget.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report_charts as charts  # noqa: E402
from report_contract import table  # noqa: E402
from report_files import main_of_a_page  # noqa: E402
from report_numbers import bytes_text, number  # noqa: E402
from report_values import LARGEST, checked, result_of, rows_of, value_of  # noqa: E402

WANTED = "wanted what `limbeck quantize --budgets ... --json FILE` writes"
FLOAT_BITS = 32


class Point(NamedTuple):
    asked: str
    bytes: float
    ratio: float
    predicted: float
    measure: str  # "kl"; of an encoder "turned": 1 - cosine of its pooled states
    distance: float
    low: float
    high: float
    perplexity: float | None  # of what predicts tokens
    float_perplexity: float | None
    rows: float
    targets: float
    formats: dict[str, str]

    @property
    def bits(self) -> float:
        return FLOAT_BITS / self.ratio


def point_of(entry: dict) -> Point:
    measured, estimate = entry["measured"], entry["estimate"]
    measure = "turned" if "turned" in measured else "kl"
    said = {name: value_of(measured, key) for name, key in (("distance", measure), ("low", f"{measure}_low"), ("high", f"{measure}_high"))}
    said |= {key: value_of(measured, key) for key in ("rows", "targets")}
    for key in ("perplexity", "float_perplexity"):
        said[key] = value_of(measured, key) if measure == "kl" else None
    ratio = value_of(estimate, "compression_ratio")
    if not 1 / LARGEST < ratio:
        raise ValueError("compression_ratio is not positive")
    formats = {str(module): str(of["format"]) for module, of in entry["modules"].items()}
    return Point(str(entry["asked"]), value_of(entry, "bytes"), ratio, value_of(entry, "predicted_loss"), measure=measure, formats=formats, **said)


def is_curve(result: dict) -> bool:
    return "curve" in result


def curve_of(result: dict) -> tuple[list[Point], list[str], str]:
    points = [point_of(entry) for entry in result["curve"]]
    if not points or any((p.formats.keys(), p.measure) != (points[0].formats.keys(), points[0].measure) for p in points):
        raise ValueError("the points of the curve are none, or not of one model")
    return sorted(points, key=lambda point: point.bits), [str(line) for line in result.get("too_small", [])], rows_of(result)


def read_curve(path: Path) -> tuple[list[Point], list[str], str]:
    """The points, fewest bits first, what was too small, and on which rows they are measured."""
    return checked(path, result_of(path, WANTED), curve_of, WANTED)


def figures(points: list[Point]) -> str:
    def line(name: str, colour: int, value: str) -> charts.Line:
        return charts.Line(name, colour, [(point.bits, getattr(point, value)) for point in points])

    over, measure = "bits a weight", MEASURES[points[0].measure]
    drawn = [charts.figure(measure.title, [line(f"{measure.name}, measured", 0, "distance"), line("95 %, low", 7, "low"),
                           line("95 %, high", 7, "high"), line("loss, predicted", 1, "predicted")], number, over)]  # fmt: skip
    if points[0].perplexity is not None:
        drawn.append(charts.figure("perplexity", [line("perplexity", 0, "perplexity"), line("in floats", 2, "float_perplexity")], number, over))
    return "".join([*drawn, charts.figure("bytes", [line("bytes", 0, "bytes")], bytes_text, over)])


class Measure(NamedTuple):
    name: str
    title: str
    head: str


MEASURES = {
    "kl": Measure("KL", "KL to the floats, nats a target", "KL to floats"),
    "turned": Measure("1 - cosine", "1 - cosine of pooled states to the floats'", "1 - cosine to floats"),
}
LEGEND = ((0, "measured on held-out rows"), (7, "95 % of rows drawn again"), (1, "predicted by scores"), (2, "the model in floats"))


def body(points: list[Point], too_small: list[str], rows: str) -> str:
    curve = [[p.asked, f"{p.bytes:.0f}", f"{p.bits:.3f}", f"1/{p.ratio:.2f}", f"{p.predicted:.6f}", f"{p.distance:.6f}",
              f"{p.low:.6f} to {p.high:.6f}", *([] if p.perplexity is None else [f"{p.perplexity:.4f}"])] for p in points]  # fmt: skip
    head = ["budget", "bytes", "bits a weight", "of float32", "predicted loss", MEASURES[points[0].measure].head, "95 % of rows drawn again"]
    predicts = points[0].float_perplexity is not None
    head += ["perplexity"] if predicts else []
    modules = [[module, *(point.formats[module] for point in points)] for module in points[0].formats]
    facts = [("rows held out", number(points[0].rows)), ("targets", number(points[0].targets))]
    facts += [("perplexity in floats", number(points[0].float_perplexity))] if predicts else []
    cards = "".join(f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for what, value in facts)
    keys = "".join(f'<li><i class="key s{colour}"></i>{escape(name)}</li>' for colour, name in LEGEND)
    notes = "".join(f'<p class="note">{escape(line)}</p>' for line in [*too_small, *([f"Measured on {rows}."] if rows else [])])
    return f"""<section class="cards">{cards}</section>
<h2>Curve</h2>
<ul class="legend">{keys}</ul><div class="charts">{figures(points)}</div>
<h2>Budgets</h2>
{table("Budgets", head, curve)}
{notes}
<h2>Formats</h2>
{table("Formats", ["module", *(point.asked for point in points)], modules)}"""  # fmt: skip


def main(arguments: list[str]) -> int:
    return main_of_a_page("report_budgets", __doc__, "CURVE", "name what limbeck quantize --budgets wrote by --json",
                          lambda path: f"budgets of {path.stem}", read_curve, lambda curve: body(*curve), arguments)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
